"""Moving unstable poles inside the unit circle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.checks import require_kind, require_number
from compressm.errors import InvalidSystemError
from compressm.linalg.parallel import eigenvalues
from compressm.linalg.statespace import StateSpace

MARGIN = "a distance from the unit circle between 0 and 1"
_WORST_EIGENVECTORS = 1e8


@dataclass(frozen=True, eq=False)
class Clamped:
    """The systems with poles moved, how many of how many were, and the largest spectral radius before and after."""

    system: StateSpace
    moved: int
    poles: int
    radius_before: float
    radius: float

    def __str__(self) -> str:
        return (
            f"{self.moved} of {self.poles} poles were unstable and were moved inside the unit circle (spectral radius "
            f"{self.radius_before:.9g} -> {self.radius:.9g})"
        )


def clamp_poles(system: StateSpace, margin: float) -> Clamped:
    """Poles with |a| >= 1 moved to a (1 - margin) / |a|, along their rays; all others, B, C and D stay.

    For a dense state matrix A = V diag(a) V^{-1} the eigenvectors stay, where their condition number is below 1e8;
    otherwise all of A is scaled. For single systems and banks: a system without unstable poles stays bit for bit.

    Raises InvalidSystemError for a system in continuous time, ConfigError for a margin that is not between 0 and 1.
    """
    require_kind("system", system, StateSpace, error=InvalidSystemError)
    require_number("margin", margin, 0, 1, above=True, below=True, wanted=MARGIN)
    if not system.is_discrete:
        raise InvalidSystemError("Poles are clamped to the unit circle of a discrete system; discretize it first.")
    radius = 1 - margin
    before = float(system.spectral_radius().max())
    if system.is_diagonal:
        size = system.a.abs() if system.log_a is None else system.log_a.real.exp()
        moved = size >= 1 if system.log_a is None else system.log_a.real >= 0
        a = torch.where(moved, torch.polar(torch.full_like(size, radius), torch.angle(system.a)).to(system.a), system.a)
        log_a = system.log_a
        if log_a is not None:
            log_a = torch.where(moved, torch.complex(torch.full_like(size, math.log(radius)), log_a.imag), log_a)
        clamped = replace(system, a=a, log_a=log_a)
        before = max(before, float(size.max()))
    else:
        a, moved = _clamped_matrices(system.a, radius)
        clamped = replace(system, a=a)
    return Clamped(clamped, int(moved.sum()), moved.numel(), before, float(clamped.spectral_radius().max()))


def _clamped_matrices(a: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Matrices `(*h, n, n)` without unstable eigenvalues, and which eigenvalues `(*h, n)` were moved."""
    poles, vectors = torch.linalg.eig(a)
    size = poles.abs()
    unstable = size >= 1
    wrong = unstable.any(-1)
    conditioned = torch.linalg.cond(vectors) < _WORST_EIGENVECTORS  # False for NaN
    plain = torch.eye(a.shape[-1], dtype=vectors.dtype).expand_as(vectors)
    vectors = torch.where(conditioned[..., None, None], vectors, plain)
    new = vectors * torch.where(unstable, poles * (radius / size), poles).unsqueeze(-2)
    new = torch.linalg.solve(vectors.mT, new.mT).mT
    new = new if a.is_complex() else new.real.contiguous()
    kept = conditioned & (eigenvalues(torch.where(conditioned[..., None, None], new, 0 * a)).abs().amax(-1) < 1)
    scaled = a * (radius / size.amax(-1)).clamp(max=1.0)[..., None, None]
    new = torch.where(kept[..., None, None], new, scaled)
    moved = unstable | (wrong & ~kept).unsqueeze(-1)
    return torch.where(wrong[..., None, None], new, a), moved
