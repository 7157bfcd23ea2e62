"""Elementary functions of complex tensors: near a zero, and products with real ones."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_expm1(z: Tensor) -> Tensor:
    """e^z - 1 for real or complex z, accurate near 0: expm1(x) cos(y) - 2 sin(y/2)^2 + i e^x sin(y)."""
    if not z.is_complex():
        return torch.expm1(z)
    x, y = z.real, z.imag
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y))


def product(first: Tensor, second: Tensor) -> Tensor:
    """first @ second, in real products where one of them is real."""
    if first.is_complex() == second.is_complex():
        return first @ second
    if first.is_complex():
        return torch.complex(first.real @ second, first.imag @ second)
    columns = torch.view_as_real(second.resolve_conj().contiguous()).flatten(-2)
    return torch.view_as_complex((first @ columns).unflatten(-1, (-1, 2)))
