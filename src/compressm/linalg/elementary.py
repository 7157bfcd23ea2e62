"""Elementary functions of complex tensors that keep their digits near a zero."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_expm1(z: Tensor) -> Tensor:
    """e^z - 1 for real or complex z, accurate near 0: expm1(x) cos(y) - 2 sin(y/2)^2 + i e^x sin(y)."""
    if not z.is_complex():
        return torch.expm1(z)
    x, y = z.real, z.imag
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y))
