"""How many real poles the leading parts of a real matrix have, without a decomposition of each."""

from __future__ import annotations

import torch
from torch import Tensor

_POINTS = 400  # of the real axis, evenly spread over the disk of the poles, beside those below the poles
_SURE = 1e-8  # of the largest determinant its rows allow: what is above it has a certain sign
_APART = 1e-9  # of the spectral radius, from a real pole


def least_real_poles(poles: Tensor, vectors: Tensor, removed: int) -> list[int]:
    """Lower bounds of the numbers of real poles of a real `(k, k)` matrix A without its last 1 .. `removed` states.

    `poles` and `vectors` are those of A. By Schur's complement the determinant of the leading part of A - x is that of
    A - x times that of the last rows and columns of (A - x)^{-1}, a sum over the poles of A. Each change of its sign
    along the real axis is a real pole of the part.
    """
    k = len(poles)
    removed = min(removed, k)
    rows, columns = (
        vectors[k - removed :],
        torch.linalg.solve(vectors, torch.eye(k, dtype=poles.dtype)[:, k - removed :]),
    )
    radius, real = float(poles.abs().max()), poles.real[poles.imag == 0]
    x = torch.cat([torch.linspace(-radius, radius, _POINTS, dtype=torch.float64), poles.real]).unique()
    x = x[((x.unsqueeze(-1) - real).abs() > _APART * radius).all(-1)]
    terms = (rows.unsqueeze(1) * columns.mT).flatten(0, 1).mT  # (k, removed * removed)
    corner = ((1 / (poles - x.unsqueeze(-1))) @ terms).real.unflatten(-1, (removed, removed))
    whole = 1 - 2 * ((real < x.unsqueeze(-1)).sum(-1) % 2)
    counts: list[int] = []
    for states in range(1, removed + 1):
        part = corner[:, removed - states :, removed - states :]
        found = torch.linalg.det(part)
        sure = found.abs() > _SURE * torch.linalg.vector_norm(part, dim=-1).prod(-1)
        signs = (found.sign() * whole)[sure]
        counts.append(int((signs[1:] != signs[:-1]).sum()))
    return counts
