"""DSS of its authors' repository, as a small module that holds and does the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import CompressionSettings, FixedOrder, compress_
from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_adapter
from compressm.adapters.thirdparty.dss import DSSKernelAdapter
from compressm.errors import AdapterError, ConfigError
from compressm.reduction.result import GramianSource
from compressm.testing import check_adapter

WHITE = GramianSource.WHITE
KINDS: list[dict[str, Any]] = [
    {"version": "exp"},
    {"version": "exp-re-im", "two_steps": False, "transposed": False, "dropout": 0.5},
    {"version": "exp-no-scale", "channels": 2},
    {"version": "clip", "bidirectional": True},
    {"version": "clip-no-scale", "two_steps": False},
]


@pytest.fixture
def dss(activated) -> Callable[..., nn.Module]:
    def make(version: str = "exp", states: int = 10, **options: Any) -> nn.Module:
        torch.manual_seed(3)
        return activated(4, states, kind="dss", version=version, **options)

    return make


def cut_to(order: int) -> CompressionSettings:
    return CompressionSettings(FixedOrder(order), controllability=WHITE, observability=WHITE)


def impulse(layer: nn.Module, length: int) -> Tensor:
    """The kernel, (p, H, length)."""
    with torch.no_grad():
        return layer.kernel(L=length)[0]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_laws(dss, options) -> None:
    assert type(find_adapter(dss(**options))) is DSSKernelAdapter
    check_adapter(lambda: dss(**options), order=4)


@pytest.mark.parametrize("options", [{}, {"max_kernel_length": 80}], ids=str)
def test_the_laws_of_softmax_for_one_length(dss, options) -> None:
    check_adapter(lambda: dss("softmax", **options), adapter=DSSKernelAdapter(length=100), order=4)


def test_all_channels_keep_the_same_states(dss) -> None:
    layer = dss()
    poles = set(layer.kernel.Lambda_im.tolist())
    report = compress_(layer, cut_to(4)).layers[0]
    assert (report.order_before, report.order_after, report.bound) == (10, 4, None)
    assert set(layer.kernel.Lambda_im.tolist()) < poles and layer.n == layer.kernel.N == 4
    assert layer.kernel.W.shape == (1, 4, 4, 2) and layer.kernel.W._optim == {"weight_decay": 0.0}


def test_softmax_is_cut_as_the_system_for_the_length_given(dss) -> None:
    """The weights are fitted at that length: no other weights of the kept states come nearer there."""
    layer = dss("softmax", states=6)
    before = impulse(layer, 400)
    compress_(layer, cut_to(4), adapters={type(layer): DSSKernelAdapter(length=400)})
    error = (impulse(layer, 400) - before).square().sum()
    for seed in range(5):
        moved = 1e-2 * torch.randn(layer.kernel.W.shape, generator=torch.Generator().manual_seed(seed))
        for sign in (1, -1):
            with torch.no_grad():
                layer.kernel.W.add_(sign * moved)
                assert (impulse(layer, 400) - before).square().sum() > error
                layer.kernel.W.sub_(sign * moved)


@pytest.mark.parametrize("adapter", [None, DSSKernelAdapter(length=50)], ids=["no length", "both ways"])
def test_softmax_that_is_not_one_system_is_refused(dss, adapter) -> None:
    layer = dss("softmax", bidirectional=adapter is not None)
    kept = {name: p.clone() for name, p in layer.named_parameters()}
    why = "runs both ways" if adapter else "no length was given"
    with pytest.raises(
        AdapterError, match=rf"{why}.*DSSKernelAdapter\(length=\.\.\.\).*adapters=\{{Activated: None\}}"
    ):
        compress_(nn.Sequential(layer), cut_to(4), adapters=adapter and {type(layer): adapter})
    assert all(torch.equal(kept[name], p) for name, p in layer.named_parameters())


def test_a_length_that_is_none(dss) -> None:
    with pytest.raises(ConfigError, match="length"):
        DSSKernelAdapter(length=0)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("version", "exp2", "has version='exp2'; known are softmax, exp"),
        ("max_real_Lambda", "much", "has max_real_Lambda='much'; wanted a number"),
    ],
)
def test_options_that_are_not_known(dss, attribute, value, message) -> None:
    layer = dss("clip")
    setattr(layer.kernel, attribute, value)
    with pytest.raises(AdapterError, match=message):
        compress_(layer, cut_to(4))


def test_gradients_are_captured_at_the_output_of_the_systems(dss) -> None:
    layer, u = dss(channels=2), torch.randn(3, 10, 4)
    with Calibration(layer) as calibration:
        layer(u.mT)[0].square().sum().backward()
    capture = calibration.capture("")
    assert capture is not None and torch.equal(capture.inputs[0][0], u)
    gradient = capture.gradients[0][0].unflatten(-1, (4, 2))
    assert torch.allclose(torch.einsum("blhp,blh->ph", gradient, u), layer.D.grad, rtol=1e-4, atol=1e-4)
