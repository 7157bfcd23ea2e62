"""The layers of 2022 around the S4 repository, H3 and Liquid-S4, as small modules that hold and do the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import CompressionSettings, FixedOrder, InTrainingCompressor, compress_
from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_adapter, find_layers
from compressm.adapters.thirdparty.releases import RELEASES, release_of
from compressm.adapters.thirdparty.s4 import S4KernelAdapter, S4TiedAdapter
from compressm.adapters.thirdparty.s4_dplr import S4LowRankAdapter
from compressm.errors import AdapterError
from compressm.reduction.result import GramianSource
from compressm.surgery.parameters import apply_update
from compressm.testing import check_adapter
from compressm.testing.rewriting import rewrite
from compressm.training.schedule import At

WHITE = GramianSource.WHITE
KINDS: list[tuple[type, dict[str, Any]]] = [
    (S4KernelAdapter, {}),
    (S4KernelAdapter, {"disc": "zoh", "real_type": "softplus", "channels": 2, "frozen": True}),
    (S4KernelAdapter, {"bidirectional": True, "real_type": "relu", "dropout": 0.5, "transposed": False}),
    (S4TiedAdapter, {"n_ssm": 1, "channels": 2}),
    (S4LowRankAdapter, {"kind": "low rank"}),
    (S4LowRankAdapter, {"kind": "low rank", "seen": 31, "real_type": "relu", "rank": 2}),
    (S4LowRankAdapter, {"kind": "low rank", "l_max": 24, "bidirectional": True}),
    (S4LowRankAdapter, {"kind": "first"}),
    (S4LowRankAdapter, {"kind": "first", "l_max": 40, "frozen": True}),
    (S4LowRankAdapter, {"kind": "free", "l_max": 16, "rank": 2, "channels": 2, "seen": 20}),
]


def cut_to(order: int) -> CompressionSettings:
    return CompressionSettings(FixedOrder(order), controllability=WHITE, observability=WHITE)


def make(layer_type: type[nn.Module], width: int = 3, states: int = 12, seen: int = 0, **options: Any) -> nn.Module:
    """A layer, after a pass of `seen` steps."""
    torch.manual_seed(3)
    layer = layer_type(width, states, **options)
    if seen:
        layer(torch.randn(1, width, seen))
    return layer


@pytest.mark.parametrize(("adapter", "options"), KINDS, ids=str)
def test_the_laws(activated, adapter, options) -> None:
    assert type(find_adapter(make(activated, **options))) is adapter
    check_adapter(lambda: make(activated, **options), order=4)


@pytest.mark.parametrize("kind", ["diagonal", "low rank", "first", "free"])
def test_what_counts_states_follows(activated, kind) -> None:
    layer = make(activated, kind=kind)
    compress_(layer, cut_to(3))
    order = layer.kernel.kernel.C.shape[2]
    assert 0 < order <= 3 and order == layer.kernel.kernel.N and layer.kernel.N == layer.N == 2 * order
    assert layer.kernel.kernel.C._optim == {"weight_decay": 0.0}
    assert layer(torch.randn(2, 3, 50))[0].isfinite().all()


@pytest.mark.parametrize("kind", ["low rank", "first", "free"])
def test_a_low_rank_part_is_gone_for_good(activated, kind) -> None:
    layer = make(activated, kind=kind, rank=2)
    compress_(layer, cut_to(3))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(2, 3, 20))[0].square().mean().backward()
        optimizer.step()
    names = ("P", "Q") if kind == "free" else ("P",)
    assert not any(getattr(layer.kernel.kernel, name).any() for name in names)
    assert layer.kernel.kernel.C.grad.abs().min() > 0


def test_decay_rates_have_no_floor_in_the_low_rank_kernel_of_2022(activated) -> None:
    """relu adds 1e-4 in the diagonal kernel and nothing in the other one."""
    for kind, wanted in (("low rank", 0.05), ("diagonal", 0.05 + 1e-4)):
        layer = make(activated, kind=kind, real_type="relu").double()
        release = release_of(layer)
        with torch.no_grad():
            getattr(layer.kernel.kernel, release.poles.names[0]).fill_(0.05)
        decay, _ = release.poles.read(layer.kernel.kernel, "layer")
        assert torch.equal(decay, torch.full_like(decay, wanted))


def test_no_release_is_taken_for_another(activated, convolution, h3) -> None:
    options = ({}, {"low_rank": True}, {"is_real": True})
    layers = [make(convolution, **o) for o in options]
    layers += [make(activated, kind=kind) for kind in ("low rank", "first", "free", "diagonal")]
    layers += [layers[1].kernel, layers[0].kernel, layers[3].kernel.kernel, make(h3).kernel.kernel]
    found = [release_of(layer) for layer in layers]
    assert found == [RELEASES[k] for k in (1, 0, *range(2, 11))]


@pytest.mark.parametrize("both_ways", [False, True])
def test_what_lies_behind_the_lengths_is_left_out(activated, both_ways) -> None:
    layer, u, lengths = make(activated, bidirectional=both_ways), torch.randn(2, 3, 8), torch.tensor([5, 8])
    for call in ({"lengths": lengths}, {"args": (None, 1.0, lengths)}):
        with Calibration(layer) as calibration:
            layer(u, *call.get("args", ()), **({} if "args" in call else call))[0].sum().backward()
        found, mask = calibration.capture("").inputs[0]
        wanted = torch.arange(8) < lengths[:, None]
        assert torch.equal(found[:2], u.mT) and torch.equal(mask[:2], wanted)
        if both_ways:
            assert torch.equal(found[2:], u.mT.flip(1)) and torch.equal(mask[2:], wanted.flip(1))


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, 3, 20, generator=generator).double()
    layer.zero_grad()
    y, _ = layer(u)
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"channels": 2, "disc": "zoh"}, {"n_ssm": 1}], ids=str)
def test_gradients_follow_a_change_of_states(activated, options) -> None:
    layer = make(activated, **options).double()
    adapter, before = find_adapter(layer), gradients(layer)
    update = adapter.write(layer, rewrite(adapter.read(layer), adapter.form, shared=adapter.selection(layer).shared))
    expected = {name: new for m in update.maps for name, new in (m.covectors(before) or {}).items()}
    apply_update(layer, update)
    after = gradients(layer)
    assert {"kernel.kernel.B", "kernel.kernel.C"} <= set(expected)
    for name, value in expected.items():
        assert torch.allclose(value, after[name], rtol=1e-6, atol=1e-8 * float(after[name].abs().max())), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disc": "dss"}, "disc='dss', known are 'zoh' and 'bilinear'"),
        ({"bandlimit": 0.5}, "bandlimit=0.5 cannot be cut: it masks states"),
        ({"force_real": True}, "force_real=True cannot be cut: it uses the real part"),
        ({"hyper": True}, "hyper=True cannot be cut: its output is multiplied"),
        ({"bottleneck": 1}, "bottleneck=1 cannot be cut: its input goes through"),
        ({"kind": "low rank", "n_ssm": 1}, "low-rank part and shares its state matrices"),
    ],
)
def test_what_cannot_be_cut_is_refused(activated, options, message) -> None:
    model = nn.Sequential(make(activated, **options))
    kept = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(AdapterError, match=message + r".*adapters=\{Activated: None\}"):
        compress_(model, cut_to(3))
    assert all(torch.equal(kept[name], p) for name, p in model.named_parameters())
    assert compress_(model, cut_to(3), adapters={activated: None}).layers == ()


@pytest.mark.parametrize("kind", ["diagonal", "low rank", "first"])
@pytest.mark.parametrize("degree", [1, 2])
def test_liquid_terms_are_refused_with_what_was_read_and_the_difference(liquid, kind, degree) -> None:
    layer = make(liquid, kind=kind, liquid=degree)
    kept = {name: p.clone() for name, p in layer.named_parameters()}
    adapter = type(find_adapter(layer)).__name__
    wanted = rf"0: {adapter} read a system whose output differs from that of Liquid's own forward pass by [0-9.e+-]+ "
    with pytest.raises(AdapterError, match=wanted + r".*Nothing was cut.*adapters=\{Liquid: None\}"):
        compress_(nn.Sequential(layer), cut_to(3))
    assert all(torch.equal(kept[name], p) for name, p in layer.named_parameters())
    plain = make(liquid, kind=kind, liquid=0)
    assert compress_(plain, cut_to(3)).layers[0].order_after <= 3


class TestKernelsAlone:
    """H3's diagonal kernel, which its layer multiplies with: neither input nor output of the system is seen."""

    @pytest.mark.parametrize("options", [{}, {"n_ssm": 1}], ids=str)
    def test_the_laws(self, h3, options) -> None:
        check_adapter(lambda: make(h3, **options).kernel.kernel, order=4)

    @pytest.mark.parametrize("kernel", ["later", "later low rank", "low rank"])
    def test_the_laws_of_others(self, activated, convolution, kernel) -> None:
        def build() -> nn.Module:
            if kernel == "low rank":
                return make(activated, kind=kernel, seen=20).kernel.kernel
            return make(convolution, low_rank="low rank" in kernel, seen=20).kernel

        check_adapter(build, order=4)

    def test_only_the_diagonal_kernel_is_cut(self, h3) -> None:
        layer = make(h3)
        assert [ref.name for ref in find_layers(layer)] == ["kernel.kernel"]  # the shift kernel has no recurrence
        u = torch.randn(2, 20, 3)
        before, shift = layer(u), layer.ssm_k_kernel.kernel.C.clone()
        report = compress_(layer, cut_to(4)).layers[0]
        assert report.order_after == layer.kernel.kernel.N == 4 and report.hinf_error <= report.bound
        assert torch.equal(layer.ssm_k_kernel.kernel.C, shift)
        assert (layer(u) - before).norm() < 0.5 * before.norm()

    def test_gramians_are_those_of_white_input_which_is_said(self, h3) -> None:
        layer = make(h3)
        with Calibration(layer) as calibration:
            layer(torch.randn(2, 20, 3)).square().sum().backward()
        assert calibration.capture("kernel.kernel") is None
        (report,) = compress_(layer, CompressionSettings(FixedOrder(4)), calibration=calibration).layers
        assert (report.controllability, report.observability) == ("white", "white")
        assert "no inputs were captured" in report.fallbacks[0]

    def test_it_is_cut_while_it_trains(self, h3) -> None:
        layer = make(h3)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        settings = CompressionSettings(FixedOrder(4))
        compressor = InTrainingCompressor(layer, optimizer, schedule=At((2,)), settings=settings, calibration_steps=2)
        for _ in range(4):
            optimizer.zero_grad()
            layer(torch.randn(2, 20, 3)).square().mean().backward()
            optimizer.step()
            compressor.step()
        assert compressor.history.cuts[0].report.layers[0].order_after == layer.kernel.kernel.C.shape[2] == 4
        assert optimizer.state[layer.kernel.kernel.C]["exp_avg"].shape == layer.kernel.kernel.C.shape

    def test_a_kernel_has_no_input(self, h3) -> None:
        kernel = make(h3).kernel.kernel
        with pytest.raises(AdapterError, match="is given no input"):
            find_adapter(kernel).inputs(kernel, (), {"L": 4})
