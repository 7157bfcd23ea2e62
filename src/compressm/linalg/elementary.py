"""Elementary functions of complex tensors: near a zero, and products with real ones."""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR = 2**-4  # |1 - product| below which logarithms are used
_NARROW = 32  # columns up to which a product is made by rows


def complex_expm1(z: Tensor) -> Tensor:
    """e^z - 1 for real or complex z, accurate near 0: expm1(x) cos(y) - 2 sin(y/2)^2 + i e^x sin(y)."""
    if not z.is_complex():
        return torch.expm1(z)
    x, y = z.real, z.imag
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y))


def pole_gaps(a: Tensor, b: Tensor, logs: tuple[Tensor, Tensor] | None) -> Tensor:
    """1 - a_i b_j `(n, k)` for complex `a` `(n,)` and `b` `(k,)`; `logs` are log(a) and log(b), where they are known.

    With logarithms, products near 1 are subtracted by expm1 and lose no digits; others lose about four bits at most.
    """
    gaps = 1 - a.unsqueeze(-1) * b
    if logs is not None:
        i, j = (gaps.real.abs() + gaps.imag.abs() < _NEAR).nonzero(as_tuple=True)
        gaps[i, j] = -complex_expm1(logs[0][i] + logs[1][j])
    return gaps


def product(first: Tensor, second: Tensor) -> Tensor:
    """first @ second, in real products where one of them is real."""
    if first.is_complex() == second.is_complex():
        return first @ second
    if first.is_complex():
        return torch.complex(first.real @ second, first.imag @ second)
    columns = torch.view_as_real(second.resolve_conj().contiguous()).flatten(-2)
    if first.ndim == 2 and second.ndim == 2 and 0 < columns.shape[-1] <= _NARROW:
        return _narrow_product(first, columns)
    return torch.view_as_complex((first @ columns).unflatten(-1, (second.shape[-1], 2)))


def _narrow_product(first: Tensor, columns: Tensor) -> Tensor:
    """The same for a few columns, real and imaginary parts by turns: libraries take ten times as long as they need."""
    if columns.shape[-1] == 2:
        return torch.complex(*(first.mv(column) for column in columns.mT.contiguous())).unsqueeze(-1)
    rows = (columns.mT @ first.mT).unflatten(0, (-1, 2))
    return torch.view_as_complex(rows.movedim(-1, 0).contiguous())


def column_sizes(x: Tensor) -> Tensor:
    """The 2-norms `(k,)` of the columns of a real or complex `(n, k)`."""
    if not x.is_complex():
        return torch.linalg.vector_norm(x, dim=0)
    return torch.view_as_real(x.resolve_conj()).square().sum(0).sum(-1).sqrt()


def largest_part(x: Tensor) -> float:
    """The largest absolute value of the real and imaginary parts, 0 where there are none."""
    if x.numel() == 0:
        return 0.0
    least, most = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).aminmax()  # without a copy
    return max(-float(least), float(most))


def all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite. What is not shows in the sum; an overflow of the sum is looked into."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
