"""Every adapter of a foreign layer in a run: two steps, a cut under data and loss, two steps more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import (
    At,
    CompressionSettings,
    FixedOrder,
    InTrainingCompressor,
    compress_,
    load_checkpoint,
    save_checkpoint,
)
from compressm.adapters.registry import find_layers
from compressm.errors import AdapterError, TiedParametersError
from compressm.reduction.result import GramianSource
from compressm.training.compressor import OnError

WHITE = GramianSource.WHITE
KINDS = [
    "lru_pytorch",
    "reduction_lru",
    "s5",
    "s5 both ways",
    "s5 alone",
    "short_s4d",
    "diagonal",
    "both ways",
    "shared poles",
    "low rank",
    "real poles",
    "2022 diagonal",
    "2022 low rank",
    "2022 first",
    "2022 free",
    "dss",
]


class Sequences(nn.Module):
    """A layer on (batch, L, 3), whatever it takes and returns."""

    def __init__(self, layer: nn.Module, alone: bool = False) -> None:
        super().__init__()
        self.layer, self.alone = layer, alone

    def forward(self, u: Tensor) -> Tensor:
        y = torch.stack([self.layer(x) for x in u]) if self.alone else self.layer(u)
        return y[0] if isinstance(y, tuple) else y


@pytest.fixture(params=KINDS)
def build(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    """Makes a layer of three channels; the same one with the same seed."""
    name, get = request.param, request.getfixturevalue
    if name in ("lru_pytorch", "reduction_lru"):
        kind = get(name)

        def lru() -> nn.Module:
            layer = kind(3, 3, 8)
            with torch.no_grad():
                layer.nu_log.clamp_(-3.0, 0.0)
            return Sequences(layer)

        return lru
    if name.startswith("s5"):
        s5 = get("s5")
        if name == "s5 both ways":
            return lambda: Sequences(s5.S5(3, 8, dt_min=0.01, dt_max=0.3, bidir=True))
        if name == "s5":
            return lambda: Sequences(s5.S5(3, 8, dt_min=0.01, dt_max=0.3))
        return lambda: Sequences(s5.S5(3, 8, dt_min=0.01, dt_max=0.3).seq, alone=True)
    if name == "short_s4d":
        return lambda: Sequences(get("short_s4d")(3, 16, transposed=False))
    if name == "dss" or name.startswith("2022"):
        kind = name.removeprefix("2022 ")
        states = 8 if kind == "dss" else 16
        return lambda: Sequences(get("activated")(3, states, transposed=False, kind=kind))
    if name == "real poles":
        return lambda: Sequences(get("convolution")(3, 8, transposed=False, is_real=True))
    named = {"both ways": {"bidirectional": True}, "shared poles": {"n_ssm": 1}, "low rank": {"low_rank": True}}
    options = named.get(name, {})
    return lambda: Sequences(get("convolution")(3, 16, transposed=False, **options))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, compressor: Any, steps: int) -> list[float]:
    u = torch.randn(2, 12, 1, generator=torch.Generator().manual_seed(4))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(u) - u.cumsum(1)).square().mean()
        loss.backward()
        optimizer.step()
        compressor.step()
        losses.append(loss.item())
    return losses


def make(layers: list[nn.Module], order: int = 5, **options: Any) -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(1, 3), *layers, nn.Linear(3, 1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    settings = CompressionSettings(FixedOrder(order))
    options = {"calibration_steps": 2, "on_error": OnError.RAISE} | options
    return model, optimizer, InTrainingCompressor(model, optimizer, schedule=At((2,)), settings=settings, **options)


def test_a_run_goes_on_after_a_cut(build) -> None:
    torch.manual_seed(0)
    model, optimizer, compressor = make([build()])
    kept = dict(model.named_parameters())
    before = train(model, optimizer, compressor, 2)
    (cut,) = compressor.history.cuts
    (layer,) = cut.report.layers
    assert (layer.controllability, cut.report.warnings) == ("data", ())
    refused = layer.fallbacks and "data/loss Gramians: the reduced system" in layer.fallbacks[0]
    assert layer.observability == ("white" if refused else "loss")  # weighted on both sides, it may be unstable
    assert layer.order_before == 8 > 5 >= layer.order_after and layer.output_change < 0.5
    assert all(kept[name] is p for name, p in model.named_parameters())
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    after = train(model, optimizer, compressor, 2)
    assert all(p.isfinite().all() for p in model.parameters())
    assert after[-1] < 1.5 * before[0]


def test_frozen_layers_are_cut_and_stay_frozen(build) -> None:
    torch.manual_seed(0)
    model, optimizer, compressor = make([build().requires_grad_(False)])
    train(model, optimizer, compressor, 3)
    (cut,) = compressor.history.cuts
    assert cut.report.layers[0].order_after < 8 and cut.report.warnings == ()
    assert not any(p.requires_grad or p.grad is not None for p in model[1].parameters())


def test_layers_that_share_all_their_parameters_are_cut_as_one(build) -> None:
    torch.manual_seed(0)
    first, second = build(), build()
    second.load_state_dict(first.state_dict())
    for name, parameter in first.named_parameters():
        path, _, leaf = name.rpartition(".")
        setattr(second.get_submodule(path), leaf, parameter)
    model, optimizer, compressor = make([first, second])
    assert len(find_layers(model)) == 2
    train(model, optimizer, compressor, 3)
    (cut,) = compressor.history.cuts
    assert len(cut.report.layers) == 1 and cut.report.layers[0].order_after < 8
    assert all(p is q for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_a_parameter_that_something_else_holds_is_refused(build) -> None:
    class Holder(nn.Module):
        def __init__(self, parameter: nn.Parameter) -> None:
            super().__init__()
            self.also = parameter

    torch.manual_seed(0)
    layer = build()
    name, parameter = next((n, p) for n, p in layer.named_parameters() if n.split(".")[-1] in "CW")
    before = parameter.clone()
    settings = CompressionSettings(FixedOrder(4), controllability=WHITE, observability=WHITE)
    with pytest.raises(TiedParametersError, match="is the same tensor as 'also'"):
        compress_(nn.Sequential(layer, Holder(parameter)), settings)
    assert torch.equal(before, dict(layer.named_parameters())[name])


def test_a_checkpoint_of_a_cut_layer_fits_one_of_full_size(build, tmp_path) -> None:
    torch.manual_seed(0)
    model, full = nn.Sequential(build()), nn.Sequential(build())
    u = torch.randn(2, 6, 3)
    settings = CompressionSettings(FixedOrder(4), controllability=WHITE, observability=WHITE)
    model(u), full(u)
    compress_(model, settings)
    save_checkpoint(tmp_path / "cut", model)
    load_checkpoint(tmp_path / "cut", full)
    sizes = [{k: v for k, v in vars(m).items() if isinstance(v, int)} for m in model.modules()]
    assert sizes == [{k: v for k, v in vars(m).items() if isinstance(v, int)} for m in full.modules()]
    with torch.no_grad():
        assert torch.equal(model(u), full(u))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions_are_cut_where_the_layer_itself_runs(build, dtype, request) -> None:
    torch.manual_seed(0)
    model = build().double() if dtype is torch.float64 else build().bfloat16()  # to(dtype) makes complex ones real
    kept = {name: p.clone() for name, p in model.named_parameters()}
    settings = CompressionSettings(FixedOrder(4), controllability=WHITE, observability=WHITE)
    with torch.no_grad():
        try:
            model(torch.randn(2, 6, 3, dtype=dtype))
        except RuntimeError:
            with pytest.raises(AdapterError, match="the forward pass failed on an input"):
                compress_(model, settings)
            assert all(torch.equal(kept[name], p) for name, p in model.named_parameters())
            return
    assert dtype is torch.float64
    if request.node.callspec.params["build"] in ("2022 first", "2022 free", "dss"):  # these round their kernels
        with pytest.raises(AdapterError, match="differs from that of Activated's own forward pass"):
            compress_(model, settings)
        return
    assert compress_(model, settings).layers[0].order_after <= 4
    assert all(p.dtype is kept[name].dtype for name, p in model.named_parameters())
    assert model(torch.randn(2, 6, 3, dtype=dtype)).isfinite().all()
