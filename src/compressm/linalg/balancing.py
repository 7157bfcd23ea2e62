"""Projections that balance a system and keep some of its balanced states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame, in_frame, states_per_slot
from compressm.linalg.gramians import GramianFactors
from compressm.linalg.hankel import HankelSpectrum
from compressm.linalg.statespace import StateSpace


class BalancingMethod(Enum):
    """How the projection is computed; both give the same input-output map."""

    SQUARE_ROOT = "square-root"  # balanced coordinates: both reduced Gramians equal diag(sigma)
    BALANCING_FREE = "balancing-free"  # orthonormal bases: better conditioned where states are badly scaled


@dataclass(frozen=True, eq=False)
class Projection:
    """Bases V, W `(*h, k, r)` with W* V = I: old states are about V x', new states are W* x."""

    v: Tensor
    w: Tensor

    def apply(self, system: StateSpace, frame: Frame) -> StateSpace:
        """The reduced dense system (W* A V, W* B, C V, D) of a system with the states that it has in `frame`."""
        if system.is_diagonal and states_per_slot(system, frame) == 2:
            return self._apply_to_pairs(system)
        if not system.is_diagonal:
            system = in_frame(system, frame)
        dtype = torch.promote_types(self.v.dtype, system.a.dtype)
        v, w = self.v.to(dtype), self.w.to(dtype)
        wide = torch.promote_types(dtype, system.b.dtype)
        moved = system.a.to(dtype).unsqueeze(-1) * v if system.is_diagonal else system.a.to(dtype) @ v
        return replace(
            system,
            a=w.mH @ moved,
            b=w.to(wide).mH @ system.b.to(wide),
            c=system.c.to(wide) @ v.to(wide),
            log_a=None,
        )

    def _apply_to_pairs(self, system: StateSpace) -> StateSpace:
        """The same for a diagonal complex system with real output and bases of [Re x; Im x]."""
        if system.output != "real":
            raise InvalidSystemError("A system with output='complex' has no real frame; balance it with Frame.COMPLEX.")
        n = system.order
        x = torch.complex(self.v[..., :n, :], self.v[..., n:, :])
        moved = system.a.to(x.dtype).unsqueeze(-1) * x
        b, w = system.b.to(x.dtype), self.w.mT
        return replace(
            system,
            a=w @ torch.cat([moved.real, moved.imag], -2),
            b=w @ torch.cat([b.real, b.imag], -2),
            c=(system.c.to(x.dtype) @ x).real,
            log_a=None,
        )


def numerical_ranks(values: Tensor, method: BalancingMethod = BalancingMethod.SQUARE_ROOT) -> Tensor:
    """The most states `(*h,)` that a projection can keep of each system with Hankel singular values `(*h, k)`.

    Square-root: the number of Hankel singular values above n * eps * sigma_1. Balancing-free: those above
    sqrt(eps) * sigma_1, for an orthonormal basis mixes strong states with weak ones, and round-off of the order of
    eps * sigma_1 / sigma_r in every state is then the error.
    """
    if values.numel() == 0:
        return torch.zeros(values.shape[:-1], dtype=torch.long)
    eps = torch.finfo(values.dtype).eps
    floor = values.shape[-1] * eps if method is BalancingMethod.SQUARE_ROOT else eps**0.5
    return (values > floor * values.amax(-1, keepdim=True)).sum(-1)


def numerical_rank(values: Tensor, method: BalancingMethod = BalancingMethod.SQUARE_ROOT) -> int:
    """The most states that a projection can keep in every system of a batch: the least of `numerical_ranks`."""
    return int(numerical_ranks(values, method).min()) if values.numel() else 0


def balancing_projection(
    factors: GramianFactors,
    spectrum: HankelSpectrum,
    keep: Tensor,
    method: BalancingMethod = BalancingMethod.SQUARE_ROOT,
) -> Projection:
    """The projection onto the balanced states `keep`, indices `(r,)` or `(*h, r)` into the Hankel singular values.

    Square-root: V = Lp R S^{-1/2}, W = Lq U S^{-1/2} with Lq* Lp = U S R* (Tombs and Postlethwaite 1987).
    Balancing-free: orthonormal bases of the same spaces, V = orth(Lp R), W = orth(Lq U), W <- W (V* W)^{-1}
    (Varga 1991).
    The values kept must be positive (see `numerical_rank`).
    """
    values = _columns(spectrum.values.unsqueeze(-2), keep).squeeze(-2)
    if bool((values <= 0).any()):
        raise InvalidSystemError("A balanced state with the Hankel singular value 0 cannot be kept; lower the order.")
    v = factors.controllability @ _columns(spectrum.right, keep).to(factors.controllability.dtype)
    w = factors.observability @ _columns(spectrum.left, keep).to(factors.observability.dtype)
    if method is BalancingMethod.SQUARE_ROOT:
        scale = values.rsqrt().unsqueeze(-2)
        return Projection(v * scale, w * scale)
    v, w = torch.linalg.qr(v).Q, torch.linalg.qr(w).Q
    return Projection(v, torch.linalg.solve((v.mH @ w).mT, w.mT).mT)


def _columns(matrix: Tensor, keep: Tensor) -> Tensor:
    """Columns of `(*h, k, l)`: the same of each matrix `(r,)`, or of each its own `(*h, r)`."""
    if torch.equal(keep, torch.arange(len(keep))):
        return matrix[..., : len(keep)]
    return matrix[..., keep] if keep.ndim == 1 else torch.take_along_dim(matrix, keep.unsqueeze(-2), -1)
