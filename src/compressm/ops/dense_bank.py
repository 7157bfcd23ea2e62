"""Impulse responses of banks of single-input single-output systems with dense state matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.ops.checks import check_dense_bank


def dense_bank_response(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """K[h, l] = Re(c_h A_h^l b_h) for l < length, (H, length); a (H, N, N), b and c (H, N), real or complex.

    With l = q T + r and T about sqrt(length), K is a product of the rows c A^{qT} with the columns A^r b, both by
    doubling: log2(length) squarings of the state matrices and no other powers of them. Squaring loses digits in
    proportion to the length, so give float64 where the memory is long. Raises InvalidSystemError where shapes do not
    fit together.
    """
    check_dense_bank(a, b, c, length)
    if a.numel() == 0 or length == 0:
        return (b * c).real.sum(-1, keepdim=True).expand(-1, length) if length else c.real.new_zeros(len(c), 0)
    doublings = ((length - 1).bit_length() + 1) // 2
    columns, power = _double(a, b.unsqueeze(-1), doublings)
    coarse = -(-length // columns.shape[-1])
    rows, _ = _double(power.mT, c.unsqueeze(-1), (coarse - 1).bit_length())
    return (rows[..., :coarse].mT @ columns).real.flatten(1)[:, :length]


def _double(a: Tensor, start: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """[x, A x, .., A^{T-1} x] (H, N, T) and A^T with T = 2^times."""
    columns, power = start, a
    for _ in range(times):
        columns = torch.cat([columns, power @ columns], dim=-1)
        power = power @ power
    return columns, power
