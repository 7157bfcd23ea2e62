"""Impulse responses of banks of single-input single-output systems with dense state matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.checks import check_dense_bank
from compressm.ops.derivative import written_out
from compressm.ops.precision import complex_dtype, nothing
from compressm.ops.writing import write


def dense_bank_response(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """K[h, l] = Re(c_h A_h^l b_h) for l < length, (H, length); a (H, N, N), b and c (H, N), real or complex.

    With l = q T + r and T about sqrt(length), K is a product of the rows c A^{qT} with the columns A^r b, both by
    doubling: log2(length) squarings and no other powers. What is squared is E = A - I, as E' = 2 E + E^2: its rounding
    errors are relative to E, so that slow modes, where E is small, keep their digits over any length. The precision is
    that of b and c; give A in float64, from which E is formed.

    Raises InvalidSystemError where shapes do not fit together.
    """
    check_dense_bank(a, b, c, length)
    if b.numel() == 0 or length == 0:
        return nothing(a, b, c, shape=(len(b), length))
    dtype = torch.promote_types(b.dtype, c.dtype)
    dtype = complex_dtype(dtype) if a.is_complex() else dtype
    change = (a - torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)).to(dtype)
    kernel: Tensor = _DenseBankResponse.apply(change, b.to(dtype), c.to(dtype), length)
    return kernel


class _DenseBankResponse(torch.autograd.Function):
    """Written out since the graph of the doublings costs more than their products.

    The backward pass works on the conjugates of gradients, so that what was saved needs none.
    """

    @staticmethod
    def forward(ctx: Any, change: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
        doublings = ((length - 1).bit_length() + 1) // 2
        fine = 1 << doublings
        coarse = -(-length // fine)
        along = _powers(change, doublings + 1)
        across = _powers(along[-1].mT, (coarse - 1).bit_length())
        columns, rows = _doubled(b, along[:-1]), _doubled(c, across)
        ctx.save_for_backward(columns, rows, *along, *across)
        ctx.doublings = doublings
        return torch.bmm(rows[..., :coarse].mT, columns).real.flatten(1)[:, :length].contiguous()

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        columns, rows, *powers = ctx.saved_tensors
        along, across = powers[: ctx.doublings + 1], powers[ctx.doublings + 1 :]
        fine, length = columns.shape[-1], grad.shape[-1]
        grad = torch.nn.functional.pad(grad, (0, rows.shape[-1] * fine - length)).view(len(grad), -1, fine)
        grad = grad.to(rows.dtype)
        grad_last, grad_c = _doubled_backward(rows, across, torch.bmm(columns, grad.mT), None)
        grad_power = None if grad_last is None else grad_last.mT
        grad_change, grad_b = _doubled_backward(columns, along[:-1], torch.bmm(rows, grad), grad_power)
        grad_change = torch.zeros_like(along[0]) if grad_change is None else grad_change.conj()  # of a single step
        return grad_change, grad_b.conj(), grad_c.conj(), None


def _powers(change: Tensor, count: int) -> list[Tensor]:
    """A - I, A^2 - I, A^4 - I, .. for A = I + change; `count` of them."""
    powers = [change]
    for _ in range(count - 1):
        powers.append(torch.baddbmm(powers[-1], powers[-1], powers[-1], beta=2))
    return powers[:count]


def _doubled(start: Tensor, powers: list[Tensor]) -> Tensor:
    """[x, A x, .., A^{T-1} x] (H, N, T) with T = 2^k for k powers A^{2^i} - I and x (H, N)."""
    columns = start.new_empty(*start.shape, 1 << len(powers))
    columns[..., 0] = start
    for level, power in enumerate(powers):
        known = columns[..., : 1 << level]
        write(columns[..., 1 << level : 2 << level], torch.add, known, torch.bmm(power, known))
    return columns


def _doubled_backward(
    columns: Tensor, powers: list[Tensor], grad: Tensor, grad_power: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the first power and of x, from those of the columns (changed in place) and of the last power's
    successor; all conjugate.

    None where that gradient is None and there is no power.
    """
    for level in reversed(range(len(powers))):
        power, half = powers[level], 1 << level
        later, known = grad[..., half : 2 * half], columns[..., :half]
        through = torch.bmm(later, known.mT)
        if grad_power is not None:  # of 2 P + P P
            through.add_(grad_power, alpha=2).baddbmm_(grad_power, power.mT).baddbmm_(power.mT, grad_power)
        grad_power = through
        grad[..., :half] += later + torch.bmm(power.mT, later)
    return grad_power, grad[..., 0]
