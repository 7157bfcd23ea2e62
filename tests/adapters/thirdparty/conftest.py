"""Layers of other packages, and small modules of our own that hold what theirs hold."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def _beside(name: str) -> Any:
    """The module of that name in this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_s4_modules = _beside("s4_modules")
_earlier_modules = _beside("earlier_modules")


class ReductionLRU(nn.Module):
    """What `lru.linear.LRU` of lru-reduction holds and does, written from its equations; its state starts from zero."""

    def __init__(self, in_features: int, out_features: int, state_features: int) -> None:
        super().__init__()
        m, p, n = in_features, out_features, state_features
        nu = -0.5 * torch.log(0.8 + 0.19 * torch.rand(n))
        self.D = nn.Parameter(torch.randn(p, m) / math.sqrt(m))
        self.nu_log, self.theta_log = nn.Parameter(nu.log()), nn.Parameter(torch.log(3 * torch.rand(n)))
        self.gamma_log = nn.Parameter(0.5 * torch.log(1 - torch.exp(-2 * nu)))
        self.B = nn.Parameter(torch.randn(n, m, dtype=torch.complex64) / math.sqrt(m))
        self.C = nn.Parameter(torch.randn(p, n, dtype=torch.complex64) / math.sqrt(n))
        self.in_features, self.out_features, self.state_features = m, p, n

    def poles(self) -> Tensor:
        return torch.polar(torch.exp(-self.nu_log.exp()), self.theta_log.exp())

    def forward(self, input: Tensor, state: Tensor | None = None, mode: str = "scan") -> Tensor:
        x = self.B.new_zeros(self.state_features) if state is None else state
        b = self.gamma_log.exp()[:, None] * self.B
        states = []
        for v in input.unbind(1):
            x = self.poles() * x + v.to(b.dtype) @ b.mT
            states.append(x)
        return (torch.stack(states, 1) @ self.C.mT).real + input @ self.D.mT


ReductionLRU.__module__, ReductionLRU.__qualname__ = "lru.linear", "LRU"


@pytest.fixture
def reduction_lru() -> type[nn.Module]:
    return ReductionLRU


@pytest.fixture
def short_s4d() -> type[nn.Module]:
    return _s4_modules.ShortS4D


@pytest.fixture
def convolution() -> type[nn.Module]:
    return _s4_modules.Convolution


@pytest.fixture
def activated() -> type[nn.Module]:
    return _earlier_modules.Activated


@pytest.fixture
def liquid() -> type[nn.Module]:
    return _earlier_modules.Liquid


@pytest.fixture
def h3() -> type[nn.Module]:
    return _earlier_modules.H3


@pytest.fixture
def lru_pytorch() -> type[nn.Module]:
    return pytest.importorskip("LRU_pytorch", reason="needs the extra 'thirdparty'").LRU


@pytest.fixture
def s5() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        return pytest.importorskip("s5.s5_model", reason="needs the extra 'thirdparty'")
