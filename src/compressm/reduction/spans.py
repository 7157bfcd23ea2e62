"""Rows that span what chosen states can tell: orthonormal bases, fits, and what lies beyond them."""

from __future__ import annotations

import torch
from torch import Tensor

RCOND = 1e-7  # combinations of kept states that hardly move are not used, lest weights become huge


def orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """The rows of one group `(*h, q, l)` made orthonormal to `basis` and each other; zero where nothing is left."""
    floor = RCOND * torch.linalg.vector_norm(rows, dim=(-1, -2)).unsqueeze(-1)
    for _ in range(2):  # once more: what is nearly spanned keeps no digit the first time
        rows = rows - (rows @ basis.mT) @ basis
    found: list[Tensor] = []
    for row in rows.unbind(-2):
        for _ in range(2):
            for earlier in found:
                row = row - (row * earlier).sum(-1, keepdim=True) * earlier
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        found.append(row / torch.where(length > floor, length, torch.inf))
    return torch.stack(found, -2)


def pseudo_inverse(rows: Tensor, basis: Tensor) -> tuple[Tensor]:
    """The pseudo-inverses `(*h, l, k)` of rows R `(*h, k, l)`; singular values below RCOND of the largest are zero.

    `basis` are orthonormal (or zero) rows B whose first i span the first i of R. Where the inverse of the triangular
    R B^T shows that no singular value is as small the result is B^T (R B^T)^{-1}, without a decomposition.
    """
    triangle = rows @ basis.mT
    still = (rows == 0).all(-1) & (basis == 0).all(-1)
    triangle = triangle + torch.diag_embed(still.to(rows.dtype))
    inverse = torch.linalg.solve_triangular(
        triangle, torch.eye(rows.shape[-2], dtype=rows.dtype).expand_as(triangle), upper=False
    )
    condition = torch.linalg.matrix_norm(triangle) * torch.linalg.matrix_norm(inverse)
    found, doubtful = basis.mT @ inverse, ~(condition < 1 / RCOND)
    if bool(doubtful.any()):
        found[doubtful] = torch.linalg.pinv(rows[doubtful], rtol=RCOND)
    return (found,)


def values_beyond(matrices: Tensor, basis: Tensor) -> tuple[Tensor]:
    """The singular values of X (I - B^T B) for X `(*h, m, l)` and orthonormal or zero rows B `(*h, k, l)`.

    They are those of X times the complement, with k zeros.
    """
    count = min(matrices.shape[-2:])
    if bool((basis == 0).all(-1).any()):  # fewer than k directions
        return (torch.linalg.svdvals(matrices - (matrices @ basis.mT) @ basis),)
    reflectors, scales = torch.geqrf(basis.mT)
    beyond = torch.ormqr(reflectors, scales, matrices, left=False)[..., basis.shape[-2] :]
    values = torch.linalg.svdvals(beyond)
    return (torch.cat([values, values.new_zeros(*values.shape[:-1], count - values.shape[-1])], -1),)
