"""A small layer with every kind of thing that an update may name, and updates of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate, Reset, Select


class Inner(nn.Module):
    def __init__(self, order: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(order, 3))


class Toy(nn.Module):
    """y = C tanh(pole * (B u) + weight u), with a buffer, a plain tensor and an integer size beside."""

    def __init__(self, order: int = 8) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.randn(order))
        self.B = nn.Parameter(torch.randn(order, 3))
        self.C = nn.Parameter(torch.randn(2, order))
        self.D = nn.Parameter(torch.randn(2))
        self.inner = Inner(order)
        self.register_buffer("scale", torch.rand(order))
        self.plain = torch.arange(float(order))
        self.size = order

    def forward(self, u: Tensor) -> Tensor:
        assert self.pole.shape == (self.size,)
        state = torch.tanh(self.pole * (u @ self.B.mT) + u @ self.inner.weight.mT) * self.scale + self.plain
        return state @ self.C.mT + self.D


def select(layer: nn.Module, keep: list[int]) -> LayerUpdate:
    """Keep some states of a Toy; exact for values and moments."""
    index = torch.tensor(keep)
    dims = {"pole": 0, "B": 0, "C": 1, "inner.weight": 0}
    values = {**dict(layer.named_parameters()), **dict(layer.named_buffers()), "plain": layer.plain}
    tensors = {name: values[name].detach().index_select(dim, index) for name, dim in dims.items()}
    tensors |= {name: values[name].index_select(0, index) for name in ("scale", "plain")}
    maps = (Select(("pole", "B", "inner.weight"), index, 0), Select(("C",), index, 1))
    return LayerUpdate(len(keep), tensors, {"size": len(keep)}, maps)


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def make_toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture
def make_select() -> Callable[[nn.Module, list[int]], LayerUpdate]:
    return select


@pytest.fixture
def make_reset() -> Callable[[nn.Module, list[int]], LayerUpdate]:
    def reset(layer: nn.Module, keep: list[int]) -> LayerUpdate:
        update = select(layer, keep)
        return LayerUpdate(len(keep), update.tensors, update.attributes, (Reset(("pole", "B", "inner.weight", "C")),))

    return reset
