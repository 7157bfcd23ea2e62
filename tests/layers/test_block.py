"""The pieces of a block in both memory layouts, and dropout's statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressm.layers import LRU, Block, MaskedBatchNorm
from compressm.layers.gate import GatedLinear
from compressm.layers.layout import Layout, SequenceLinear, layout_of, total_over_time
from compressm.ops.pointwise import dropout


@pytest.mark.parametrize("layout", [layout.arrange for layout in Layout] + [lambda x: x.repeat(1, 1, 2)[..., :3]])
def test_sums_over_time_in_any_order_of_memory(layout) -> None:
    x = torch.randn(4, 50, 3, dtype=torch.float64)
    assert torch.allclose(total_over_time(layout(x)), x.sum(1), atol=1e-12)


def test_the_order_of_memory_is_found() -> None:
    for shape in ((2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 1), (0, 3, 4), (2, 0, 4)):
        for layout in Layout:
            x = layout.arrange(torch.zeros(shape))
            found = layout_of(x)
            assert found is not None and found.memory(x).is_contiguous()
    assert layout_of(torch.zeros(2, 3, 8)[..., :4]) is None
    assert layout_of(torch.zeros(2, 1, 4).expand(2, 3, 4)) is None
    assert layout_of(torch.zeros(2, 3)) is None


@pytest.mark.parametrize("kind", ["linear", "gate"])
def test_linear_maps_in_both_layouts(kind) -> None:
    layer = (SequenceLinear(3, 5) if kind == "linear" else GatedLinear(3, 5)).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    plain = functional.linear(x, layer.weight, layer.bias)
    wanted = plain if kind == "linear" else functional.glu(plain)
    weight = torch.randn(2, 7, 5, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    expected = torch.autograd.grad((wanted * weight).sum(), leaves)
    for layout in Layout:
        y = layer(layout.arrange(x))
        assert torch.allclose(y, wanted, atol=1e-12)
        assert kind == "gate" or layout_of(y) is layout
        for got, grad in zip(torch.autograd.grad((y * weight).sum(), leaves), expected, strict=True):
            assert torch.allclose(got, grad, atol=1e-12)


def test_gate_gradients_are_those_of_finite_differences() -> None:
    gate = GatedLinear(3, 2).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        arranged = Layout.CHANNELS.arrange(x)
        return torch.func.functional_call(gate, {"weight": weight, "bias": bias}, (arranged, torch.ones(2, 4, 2)))

    assert torch.autograd.gradcheck(run, (x, *gate.parameters()))


@pytest.mark.parametrize("shape", [(5, 40, 50), (3, 7, 1), (4, 33)])
def test_dropout_scales(shape) -> None:
    y = dropout(torch.ones(shape), 0.25)
    assert torch.all((y == 0) | torch.isclose(y, torch.tensor(4 / 3)))


def test_dropout_drops_the_asked_share_independently() -> None:
    y = dropout(torch.ones(100, 100, 100), 0.1)
    dropped = (y == 0).double()
    assert abs(dropped.mean().item() - 0.1) < 4 * math.sqrt(0.09 / 1e6)
    for lag in (1, 2, 3, 4, 100, 10_000):  # neighbours share one random word
        flat = dropped.flatten()
        both = (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(both - 0.01) < 5 * math.sqrt(0.01 / 1e6)


def test_dropout_draws_anew_and_follows_the_seed() -> None:
    x = torch.ones(10, 100)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.5), first)


def test_dropout_gradient_is_its_mask() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x.detach(), y.detach(), atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_dropout_that_drops_nothing(p) -> None:
    x = torch.randn(3, 4)
    assert torch.equal(dropout(x, p), x)


@torch.no_grad()
def test_block_against_its_equation() -> None:
    block, x = Block(MaskedBatchNorm(4), LRU(4, 6), dropout=0.1).eval(), torch.randn(2, 30, 4)
    normalised = x / math.sqrt(1 + 1e-5)
    wanted = x + functional.glu(functional.linear(nn.GELU()(block.ssm(normalised)), block.gate.weight, block.gate.bias))
    for layout in Layout:
        assert torch.allclose(block(layout.arrange(x)), wanted, atol=1e-5)
