"""Rows that span what chosen states can tell: orthonormal bases, fits, and what lies beyond them."""

from __future__ import annotations

import torch
from torch import Tensor

RCOND = 1e-7  # combinations of kept states that hardly move are not used


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


def disturbed_factor(disturbance: float, factor: Tensor) -> tuple[Tensor]:
    """A triangular factor `(*h, k, k)` of P + disturbance^2 diag(P), for P = F F^T with `factor` F `(*h, k, l)`.

    These are the second moments of states of which each is disturbed, for itself, by that part of its own size.
    """
    sizes = torch.linalg.vector_norm(factor, dim=-1, keepdim=True)
    scaled = (factor / torch.where(sizes > 0, sizes, 1.0)).mT
    own = disturbance * torch.eye(scaled.shape[-1], dtype=factor.dtype).expand(*scaled.shape[:-2], -1, -1)
    return (sizes * torch.linalg.qr(torch.cat([scaled, own], -2), mode="r").R.mT,)


def values_lost(other: Tensor, factor: Tensor, estimate: Tensor, rows: Tensor) -> tuple[Tensor]:
    """The singular values of Lq^T (Lp - E R Lp), for `rows` R Lp."""
    return (torch.linalg.svdvals(other.mT @ (factor - estimate @ rows)),)
