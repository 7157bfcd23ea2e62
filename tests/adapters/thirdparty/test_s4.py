"""The stand-alone S4D and S4 of the S4 repository, as small modules that hold and do the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import analyze, compress_
from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_adapter, find_layers
from compressm.adapters.signature import Signature
from compressm.adapters.thirdparty.s4 import S4KernelAdapter, S4RealAdapter, S4TiedAdapter
from compressm.adapters.thirdparty.s4_dplr import S4LowRankAdapter
from compressm.adapters.thirdparty.s4d import ShortS4DAdapter, ShortS4DKernelAdapter
from compressm.adapters.update import kept_entries
from compressm.analysis import LayerAnalysis
from compressm.errors import AdapterError
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import GramianSource
from compressm.reduction.selection import ModalTruncation
from compressm.settings import CompressionSettings
from compressm.surgery.parameters import apply_update
from compressm.testing import check_adapter
from compressm.testing.rewriting import rewrite

WHITE = GramianSource.WHITE

KERNELS: list[dict[str, Any]] = [
    {},
    {"disc": "bilinear", "frozen": True},
    {"channels": 2, "real_transform": "none"},
    {"channels": 2, "swap_channels": True, "transposed": False, "real_transform": "relu"},
    {"dt_tie": False, "real_transform": "softplus", "dt_transform": "softplus"},
    {"dt_tie": False, "disc": "bilinear", "dropout": 0.5, "drop_kernel": 0.5},
    {"dt_fast": True, "dt_transform": "softplus", "bidirectional": True},
    {"bidirectional": True, "channels": 2, "drop_kernel": 0.5},
]
TIED: list[dict[str, Any]] = [
    {"n_ssm": 2, "bidirectional": True},
    {"n_ssm": 1, "channels": 2, "dt_tie": False, "disc": "bilinear"},
]
REAL: list[dict[str, Any]] = [
    {"real_transform": "softplus"},
    {"disc": "bilinear", "dt_tie": False, "channels": 2, "frozen": True},
    {"n_ssm": 2, "bidirectional": True},
]
LOW_RANK: list[dict[str, Any]] = [
    {"seen": 0},
    {"seen": 31},
    {"seen": 32, "rank": 2, "dt_tie": False},
    {"seen": 24, "l_max": 40, "channels": 2},
    {"seen": 0, "bidirectional": True},
]


def cut_to(order: int, **options: Any) -> CompressionSettings:
    return CompressionSettings(FixedOrder(order), controllability=WHITE, observability=WHITE, **options)


def make(kind: type[nn.Module], width: int = 4, states: int = 16, seen: int = 0, **options: Any) -> nn.Module:
    """A layer, after a pass of `seen` steps."""
    torch.manual_seed(3)
    layer = kind(width, states, **options)
    if seen:
        layer(torch.randn(1, width, seen))
    return layer


class TestShortS4D:
    def test_the_laws(self, short_s4d) -> None:
        assert type(find_adapter(make(short_s4d))) is ShortS4DAdapter
        check_adapter(lambda: make(short_s4d, dropout=0.5))
        check_adapter(lambda: make(short_s4d, transposed=False, frozen=True).double(), order=3)

    def test_what_else_carries_the_order_follows(self, short_s4d) -> None:
        layer = make(short_s4d)
        compress_(layer, cut_to(3))
        assert layer.n == 6 and layer.kernel.C.shape == (4, 3, 2)
        assert layer.kernel.C._optim == {"weight_decay": 0.0}

    def test_of_a_layer_without_its_activation_the_kernel_alone_is_known(self, short_s4d) -> None:
        layer = make(short_s4d)
        del layer.activation
        (ref,) = find_layers(nn.Sequential(layer))
        assert (ref.name, type(ref.adapter)) == ("0.kernel", ShortS4DKernelAdapter)
        report = compress_(nn.Sequential(layer), CompressionSettings(FixedOrder(3))).layers[0]
        assert (report.controllability, report.order_after, layer.kernel.C.shape) == ("white", 3, (4, 3, 2))
        check_adapter(lambda: make(short_s4d).kernel)

    def test_an_activation_elsewhere_is_refused(self, short_s4d) -> None:
        class Other(short_s4d):
            def forward(self, u: Tensor) -> tuple[Tensor, None]:
                y, _ = super().forward(self.activation(u))
                return y, None

        layer = make(Other)
        kept = {name: p.clone() for name, p in layer.named_parameters()}
        compress_(make(short_s4d), cut_to(3))  # the activation is last called with the output: here as well
        layer.output_linear = nn.Sequential(nn.Identity(), layer.activation)
        with pytest.raises(AdapterError, match=r"differs from that of Other's own .*adapters=\{Other: None\}"):
            compress_(nn.Sequential(layer), cut_to(2))
        assert all(torch.equal(kept[name], p) for name, p in layer.named_parameters())

    def test_an_activation_that_is_not_called_is_refused(self, short_s4d) -> None:
        class Silent(short_s4d):
            def forward(self, u: Tensor, **ignored: object) -> tuple[Tensor, None]:
                return u * self.D[:, None], None

        with pytest.raises(AdapterError, match="did not call the submodule"):
            compress_(make(Silent), cut_to(2))


class TestKernels:
    @pytest.mark.parametrize("options", KERNELS, ids=str)
    def test_the_laws_of_banks(self, convolution, options) -> None:
        assert type(find_adapter(make(convolution, **options))) is S4KernelAdapter
        check_adapter(lambda: make(convolution, **options), order=3)

    @pytest.mark.parametrize("options", TIED, ids=str)
    def test_the_laws_of_shared_poles(self, convolution, options) -> None:
        assert type(find_adapter(make(convolution, **options))) is S4TiedAdapter
        check_adapter(lambda: make(convolution, **options), order=3)
        layer = make(convolution, **options)
        shared = layer.kernel.A_real.shape[0]
        compress_(layer, cut_to(3))
        assert layer.kernel.A_real.shape == (shared, 3) and layer.kernel.C.shape[2] == layer.kernel.N == 3

    @pytest.mark.parametrize("options", REAL, ids=str)
    def test_the_laws_of_real_poles(self, convolution, options) -> None:
        def build() -> nn.Module:
            return make(convolution, states=6, is_real=True, **options)

        assert type(find_adapter(build())) is S4RealAdapter
        check_adapter(build, order=3)
        layer = build()
        before = [set(row.tolist()) for row in layer.kernel.A_real]
        report = compress_(layer, cut_to(3)).layers[0]
        assert (report.order_before, report.order_after, report.real_order, layer.kernel.N) == (6, 3, 3, 3)
        assert report.bound is None and layer.kernel.C.shape == (layer.kernel.C.shape[0], 4, 3)
        assert all(set(row.tolist()) < old for row, old in zip(layer.kernel.A_real, before, strict=True))

    def test_real_poles_are_chosen_for_each_channel(self, convolution) -> None:
        """Each channel's own best pole: of one that has a large weight on one state, that state."""
        layer = make(convolution, states=5, is_real=True)
        with torch.no_grad():
            layer.kernel.C.mul_(1e-3)
            layer.kernel.C[0, range(4), [4, 2, 0, 1]] = 1.0
        poles = layer.kernel.A_real.detach().clone()
        compress_(layer, cut_to(1))
        assert torch.equal(layer.kernel.A_real[:, 0], poles[range(4), [4, 2, 0, 1]])

    def test_states_can_be_chosen_for_each_channel(self, convolution) -> None:
        layer = make(convolution, dt_tie=False)
        poles = layer.kernel.A_imag.detach().clone()
        compress_(layer, CompressionSettings(FixedOrder(3), reducer=ModalTruncation()))
        assert all(set(new.tolist()) <= set(old.tolist()) for new, old in zip(layer.kernel.A_imag, poles, strict=True))

    def test_steps_of_states_stay_among_those_of_their_channel(self, convolution) -> None:
        layer = make(convolution, dt_tie=False)
        steps = [set(row.tolist()) for row in layer.kernel.inv_dt]
        compress_(layer, cut_to(3))
        assert layer.kernel.inv_dt.shape == (4, 3)
        assert all(set(row.tolist()) <= old for row, old in zip(layer.kernel.inv_dt, steps, strict=True))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"disc": "dss"}, "disc='dss', known are 'zoh' and 'bilinear'"),
            ({"bandlimit": 0.5}, "bandlimit=0.5 cannot be cut: it masks states"),
            ({"imag_transform": "exp"}, "imag_transform='exp' cannot be cut: a real pole"),
            ({"low_rank": True, "n_ssm": 2}, "low-rank part and shares its state matrices"),
        ],
    )
    def test_what_cannot_be_cut_is_refused(self, convolution, options, message) -> None:
        model = nn.Sequential(make(convolution, **options))
        with pytest.raises(AdapterError, match=message + r".*adapters=\{Convolution: None\}"):
            compress_(model, cut_to(3))
        assert compress_(model, cut_to(3), adapters={convolution: None}).layers == ()

    def test_a_range_that_has_no_room_for_the_reduced_poles(self, convolution) -> None:
        layer = make(convolution, real_transform="sigmoid")
        kept = {name: p.clone() for name, p in layer.named_parameters()}
        with pytest.raises(AdapterError, match="real_transform='sigmoid' decay rates lie between 0 and 1; the reduced"):
            compress_(layer, cut_to(2))
        assert all(torch.equal(kept[name], p) for name, p in layer.named_parameters())

    def test_a_foreign_transform(self, convolution) -> None:
        layer = make(convolution)
        layer.kernel.real_transform = "square"
        with pytest.raises(AdapterError, match="real_transform='square'; known are none, exp, relu, sigmoid, softplus"):
            analyze(layer)

    @pytest.mark.parametrize("options", [{"channels": 2}, {"channels": 2, "swap_channels": True, "transposed": False}])
    def test_gradients_are_captured_at_the_output_of_the_systems(self, convolution, options) -> None:
        layer = make(convolution, **options)
        u = torch.randn(3, 10, 4)
        with Calibration(layer) as calibration:
            layer(u.mT if layer.transposed else u)[0].square().sum().backward()
        capture = calibration.capture("")
        assert capture is not None and torch.equal(capture.inputs[0][0], u)
        gradient = capture.gradients[0][0].unflatten(-1, (4, 2))  # y = ... + D u for each channel and output
        assert torch.allclose(torch.einsum("blhp,blh->ph", gradient, u), layer.D.grad, rtol=1e-4, atol=1e-4)
        assert not layer.drop._forward_pre_hooks

    def test_captures_are_those_of_both_directions(self, convolution) -> None:
        """From captured inputs and gradients, the gradients of both halves of C and of D."""
        layer = make(convolution, bidirectional=True, channels=2).double()
        u = torch.randn(3, 10, 4).double()
        with Calibration(layer) as calibration:
            layer(u.mT)[0].square().sum().backward()
        capture, system = calibration.capture(""), find_adapter(layer).read(layer)
        inputs, gradients = capture.inputs[0][0], capture.gradients[0][0].double().unflatten(-1, (4, 4))
        states, x = [], torch.zeros(6, 4, system.order, dtype=torch.complex128)
        for step in inputs.unbind(1):
            x = x * system.a + step[..., None] * system.b[..., 0]
            states.append(x)
        found = 2 * torch.einsum("blhp,blhn->phn", gradients.to(x.dtype), torch.stack(states, 1).conj())
        assert torch.allclose(torch.view_as_real(found), layer.kernel.C.grad, rtol=1e-4, atol=1e-4)
        of_d = torch.einsum("blhp,blh->ph", gradients[..., :2], inputs)
        assert torch.allclose(of_d, layer.D.grad, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("call", [{"rate": 2.0}, {"state": torch.zeros(1)}])
    def test_a_pass_of_another_system_is_refused(self, convolution, call) -> None:
        layer = make(convolution)
        with Calibration(layer), pytest.raises(AdapterError, match="Capture such passes"):
            layer(torch.randn(2, 4, 10), **call)


class TestLowRank:
    @pytest.mark.parametrize("options", LOW_RANK, ids=str)
    def test_the_laws(self, convolution, options) -> None:
        assert type(find_adapter(make(convolution, low_rank=True, **options))) is S4LowRankAdapter
        check_adapter(lambda: make(convolution, low_rank=True, **options), order=5)

    def test_analysis_leaves_the_kernel_as_it_is(self, convolution) -> None:
        layer = make(convolution, low_rank=True)
        kept, before = layer.kernel.C, layer.kernel.C.detach().clone()
        plan = analyze(layer, cut_to(3))
        assert layer.kernel.C is kept and torch.equal(kept, before) and int(layer.kernel.l_kernel) == 0
        assert "z" not in vars(layer.kernel)
        assert (plan.layers[0].order, plan.layers[0].states_per_slot, plan.layers[0].planned_order) == (8, 2, 3)

    @pytest.mark.parametrize("seen", [0, 20])
    def test_it_becomes_diagonal_for_good(self, convolution, seen: int) -> None:
        layer = make(convolution, low_rank=True, rank=2, seen=seen)
        u = torch.randn(3, 4, 20)
        report = compress_(layer, cut_to(4)).layers[0]
        assert (report.order_before, report.real_order <= 8, report.hinf_error <= report.bound) == (8, True, True)
        order = report.order_after
        assert order == layer.kernel.N <= 4 and layer.kernel.P.shape == (2, 4, order, 2)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(u)[0].square().mean().backward()
            optimizer.step()
        assert not layer.kernel.P.any() and layer.kernel.C.grad.abs().min() > 0
        check_adapter(lambda: make_cut(convolution, seen), order=2)

    def test_longer_sequences_than_it_has_seen(self, convolution) -> None:
        layer = make(convolution, low_rank=True, seen=16).double()
        u = torch.randn(2, 4, 50).double()
        compress_(layer, cut_to(4))
        adapter = find_adapter(layer)
        before = adapter.read(layer).markov_parameters(50)
        layer(u)
        assert int(layer.kernel.l_kernel) == 64
        assert torch.allclose(adapter.read(layer).markov_parameters(50), before)

    def test_a_choice_of_states_is_refused_until_it_is_diagonal(self, convolution) -> None:
        layer = make(convolution, low_rank=True, seen=16)
        settings = CompressionSettings(FixedOrder(2), reducer=ModalTruncation())
        with pytest.raises(Exception, match="ModalTruncation keeps states of a diagonal system"):
            compress_(layer, settings)
        compress_(layer, cut_to(4))
        order = layer.kernel.N
        compress_(layer, settings)
        assert layer.kernel.P.shape[2] == layer.kernel.N == 2 < order


def make_cut(kind: type[nn.Module], seen: int) -> nn.Module:
    layer = make(kind, low_rank=True, seen=seen)
    compress_(layer, cut_to(4))
    return layer


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, 4, 20, generator=generator).double()
    layer.zero_grad()
    y, _ = layer(u)
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options", [KERNELS[0], KERNELS[2], KERNELS[4], *TIED, {"is_real": True, "states": 6}], ids=str
)
def test_gradients_follow_a_change_of_states(convolution, options) -> None:
    layer = make(convolution, **options).double()
    adapter, before = find_adapter(layer), gradients(layer)
    update = adapter.write(layer, rewrite(adapter.read(layer), adapter.form, shared=adapter.selection(layer).shared))
    require_follows(layer, update, before)


@pytest.mark.parametrize("options", [{}, {"dt_tie": False, "rank": 2, "channels": 2}], ids=str)
@pytest.mark.parametrize("seen", [0, 20])
def test_gradients_of_a_low_rank_layer_follow_an_exact_cut(convolution, options, seen: int) -> None:
    layer = make(convolution, states=10, low_rank=True, seen=seen, **options).double()
    with torch.no_grad():  # states that neither are driven nor drive anything nor are seen
        for name in ("B", "P", "C"):
            getattr(layer.kernel, name)[..., 2:4, :] = 0
    layer(torch.randn(1, 4, 20).double())
    before = gradients(layer)
    analysis = LayerAnalysis(find_layers(layer)[0], cut_to(4), None, None)
    reduction = analysis.decide(reduce=True).reduction
    assert reduction is not None and reduction.real_order == 6
    require_follows(layer, find_adapter(layer).write(layer, reduction), before)


def require_follows(layer: nn.Module, update: Any, before: dict[str, Tensor]) -> None:
    expected = {name: new for m in update.maps for name, new in (m.covectors(before) or {}).items()}
    apply_update(layer, update)
    after = gradients(layer)
    assert {"kernel.C"} <= set(expected)
    used = layer.kernel.C.reshape(*layer.kernel.C.shape[:3], -1).abs().amax((0, -1)) > 0
    for name, value in expected.items():
        size, found = float(after[name].abs().max()), after[name]
        if name == "kernel.C":  # idle states of a channel start without a gradient
            found = found.masked_fill(~(used[..., None] if found.ndim == 4 else used), 0)
        assert torch.allclose(value, found, rtol=1e-6, atol=1e-8 * size), name


def test_of_two_signatures_the_one_that_leaves_fewer_sizes_open_says_more() -> None:
    layer = nn.Module()
    layer.A, layer.inner = torch.zeros(3, 3), nn.Identity()
    square, any_shape = Signature.of({"A": "h h", "inner": "module"}), Signature.of({"A": "h n"})
    assert square.matches(layer) and any_shape.matches(layer) and square.freedom() < any_shape.freedom()
    del layer.inner
    assert not square.matches(layer)


def test_entries_of_each_channel_are_kept_along_any_dimension() -> None:
    tensor, keep = torch.arange(48).reshape(2, 3, 4, 2), torch.tensor([[0, 3], [1, 2], [2, 3]])
    found = kept_entries(tensor, keep, 2)
    wanted = torch.stack([tensor[:, h][:, keep[h]] for h in range(3)], 1)
    assert torch.equal(found, wanted)
