from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Parameters = tuple[Tensor, ...]
MakeSystem = Callable[..., Parameters]


@pytest.fixture
def make_system() -> MakeSystem:
    """Parameters (nu, theta, b_re, b_im, c_re, c_im) of a random diagonal system, scaled to outputs of order 1."""

    def make(
        order: int,
        inputs: int,
        outputs: int,
        *,
        dtype: torch.dtype = torch.float64,
        radius: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ) -> Parameters:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        low, high = radius
        modulus = torch.rand(order, generator=generator, dtype=torch.float64) * (high - low) + low
        nu = -torch.log(modulus)
        theta = (torch.rand(order, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
        gain = torch.sqrt(-torch.expm1(-2 * nu))[:, None] / max(inputs, 1) ** 0.5
        scale = max(order, 1) ** -0.5
        b_re, b_im = gain * normal(order, inputs), gain * normal(order, inputs)
        c_re, c_im = scale * normal(outputs, order), scale * normal(outputs, order)
        return nu, theta, *(t.to(dtype) for t in (b_re, b_im, c_re, c_im))

    return make


@pytest.fixture
def signal() -> Callable[..., Tensor]:
    """White noise of a given shape."""

    def make(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return make
