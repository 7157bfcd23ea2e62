"""What the tests of a cut share: layers, passes, and measurements that use the modules' own forward pass only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.reduction.criteria import Criterion
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings


@pytest.fixture
def make() -> Callable[..., Any]:
    """Make an LRU or dense layer in double precision, with poles of radius up to 0.97."""

    def build(kind: type[LRU | DenseSSM] = LRU, width: int = 3, order: int = 16, seed: int = 0, **ring: float) -> Any:
        ring = {"r_min": 0.5, "r_max": 0.97, **ring}
        return kind(width, order, generator=torch.Generator().manual_seed(seed), **ring).double()

    return build


@pytest.fixture
def white() -> Callable[..., CompressionSettings]:
    """Settings with white-input Gramians."""

    def build(criterion: Criterion, **others: Any) -> CompressionSettings:
        sources = {"controllability": GramianSource.WHITE, "observability": GramianSource.WHITE}
        return CompressionSettings(criterion, **{**sources, **others})

    return build


@pytest.fixture
def impulse() -> Callable[[nn.Module, int], Tensor]:
    """The impulse response `(L, p, m)` of a layer's own forward pass."""

    def response(layer: nn.Module, length: int = 512) -> Tensor:
        like = next(layer.parameters())
        u = torch.zeros(layer.width, length, layer.width, dtype=like.dtype)
        u[range(layer.width), 0, range(layer.width)] = 1
        with torch.no_grad():
            return layer(u).permute(1, 2, 0)

    return response


@pytest.fixture
def calibrate() -> Callable[..., Calibration]:
    """A calibration that has seen one training pass of slow random inputs."""

    def run(model: nn.Module, width: int = 3, seed: int = 0, cases: int = 20, length: int = 40) -> Calibration:
        g, like = torch.Generator().manual_seed(seed), next(model.parameters())
        u = (torch.randn(cases, length, width, generator=g).cumsum(1) / 3).to(like.dtype)
        with Calibration(model) as calibration:
            model(u)[:, -1].square().sum().backward()
        model.zero_grad(set_to_none=True)
        return calibration

    return run


@pytest.fixture
def state_of() -> Callable[..., dict[str, Any]]:
    """Everything of a model and optimizer that a refused cut must leave alone, with identities."""

    def state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            grad = None if p.grad is None else p.grad.clone()
            found[name] = (id(p), p.data_ptr(), p.detach().clone(), grad, p.requires_grad, p.dtype)
        if optimizer is not None:
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                for key, value in optimizer.state.get(p, {}).items():
                    found[f"{i}.{key}"] = (id(value), value.clone() if isinstance(value, Tensor) else value)
        return found

    return state


@pytest.fixture
def unchanged() -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """Whether two results of `state_of` are the same bit for bit (NaN equals NaN)."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
        if isinstance(a, tuple):
            return all(same(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return lambda first, second: first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
