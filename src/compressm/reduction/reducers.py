"""Operators that make a system smaller, in the form in which its layer can store it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from compressm.checks import require_integer, require_kind
from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import (
    BalancingMethod,
    Projection,
    balancing_projection,
    numerical_rank,
    numerical_ranks,
)
from compressm.linalg.forms import strictly_causal
from compressm.linalg.gramians import GramianFactors
from compressm.linalg.hankel import HankelSpectrum
from compressm.linalg.statespace import StateSpace


class Keep(Enum):
    """Which balanced states survive; all but LARGEST are for ablation studies."""

    LARGEST = "largest"
    RANDOM = "random"
    SMALLEST = "smallest"


@dataclass(frozen=True, eq=False)
class Projected:
    """A reduced dense system in the frame it was balanced in, with the bases that relate it to the full one.

    `refused` `(*h,)` says which systems of a bank cannot be had at this order, None for none, and `reason` why.
    """

    system: StateSpace
    projection: Projection
    refused: Tensor | None = None
    reason: str = ""

    def part(self, index: Tensor) -> Projected:
        """Some systems of a bank, by increasing indices."""
        if len(index) == len(self.projection.v):
            return self
        projection = Projection(self.projection.v[index], self.projection.w[index])
        refused = None if self.refused is None else self.refused[index]
        return Projected(self.system[index], projection, refused, self.reason)


class Reducer(ABC):
    """From a system, its Gramian factors and their spectrum to a smaller dense system, in the frame of the factors."""

    changes_feedthrough: bool = False  # whether D changes: only for layers with a full D
    has_bound: bool = True  # whether |G - G_r|_inf <= 2 * tail under white Gramians

    def balanced_system(self, system: StateSpace) -> StateSpace:
        """The system whose Gramians are to be balanced; the system itself unless the method says otherwise."""
        return system

    def truncated(self, projected: Projected, states: int) -> Projected | None:
        """What `reduce` gives for fewer states, where a larger reduction contains it; else None."""
        return None

    @abstractmethod
    def reduce(self, system: StateSpace, factors: GramianFactors, spectrum: HankelSpectrum, states: int) -> Projected:
        """The reduced system with `states` states, or as many as `numerical_rank` says can be kept.

        Raises UnsupportedReductionError where no system of the bank can be reduced to this order.
        """


@dataclass(frozen=True)
class BalancedTruncation(Reducer):
    """Balance and drop: A_r = W* A V, B_r = W* B, C_r = C V, D_r = D (Moore 1981; Antoulas 2005, section 7.1).

    Matches G at infinite frequency. With white infinite-horizon Gramians A_r is stable and
    sigma_{r+1} <= |G - G_r|_inf <= 2 * (sigma_{r+1} + ... + sigma_n).

    With `refit`, where controllability is that of the layer's own inputs, poles and C are then fitted to these (see
    `reduction.fitting`); not under a criterion that promises an error, nor where only one similarity is stored for a
    bank, nor for another `keep` than LARGEST.
    """

    method: BalancingMethod = BalancingMethod.SQUARE_ROOT
    keep: Keep = Keep.LARGEST
    seed: int = 0
    refit: bool = False

    def __post_init__(self) -> None:
        require_kind("BalancedTruncation.method", self.method, BalancingMethod)
        require_kind("BalancedTruncation.keep", self.keep, Keep)
        require_integer("BalancedTruncation.seed", self.seed, 0)
        require_kind("BalancedTruncation.refit", self.refit, bool)

    @property
    def has_bound(self) -> bool:  # type: ignore[override]
        """Only where the largest values are kept."""
        return self.keep is Keep.LARGEST

    def truncated(self, projected: Projected, states: int) -> Projected | None:
        """The leading blocks: square-root bases of fewer of the largest values are the first columns."""
        if self.keep is not Keep.LARGEST or self.method is not BalancingMethod.SQUARE_ROOT:
            return None
        system, (v, w) = projected.system, (projected.projection.v, projected.projection.w)
        small = replace(
            system, a=system.a[..., :states, :states], b=system.b[..., :states, :], c=system.c[..., :states]
        )
        return Projected(small, Projection(v[..., :states], w[..., :states]))

    def reduce(self, system: StateSpace, factors: GramianFactors, spectrum: HankelSpectrum, states: int) -> Projected:
        """The truncated balanced system."""
        kept = _kept_states(self.keep, self.seed, numerical_ranks(spectrum.values, self.method), states)
        projection = balancing_projection(factors, spectrum, kept, self.method)
        return Projected(projection.apply(system, factors.frame), projection)


@dataclass(frozen=True)
class SingularPerturbation(Reducer):
    """Balance and set the dropped states to their steady state; matches the gain at zero frequency, G(1).

    With the textbook convention y_k = C' x_{k-1} + D' u_k (C' = C A, D' = D + C B) and the balanced blocks
    A_11 .. A_22: A_s = A_11 + A_12 M A_21, B_s = B_1 + A_12 M B_2, C_s = C_1 + C_2 M A_21, D_s = D' + C_2 M B_2,
    M = (I - A_22)^{-1} (Liu and Anderson 1989). Same bound as balanced truncation, with the Hankel singular values
    of the textbook form. Going back to y_k = C x_k + D u_k needs A_s invertible and changes D to a full matrix.
    """

    changes_feedthrough = True

    def balanced_system(self, system: StateSpace) -> StateSpace:
        """The textbook form, whose Gramian Q is that of (C A, A)."""
        return strictly_causal(system)

    def reduce(self, system: StateSpace, factors: GramianFactors, spectrum: HankelSpectrum, states: int) -> Projected:
        """The residualized balanced system."""
        rank = numerical_rank(spectrum.values)
        r = min(states, rank)
        projection = balancing_projection(factors, spectrum, torch.arange(rank))
        full = projection.apply(strictly_causal(system), factors.frame)
        a, b, c, d = full.a, full.b, full.c, full.d
        feed = b.new_zeros(*system.batch_shape, system.outputs, system.inputs).to(a.dtype) if d is None else d
        steady = torch.linalg.solve(
            torch.eye(rank - r, dtype=a.dtype) - a[..., r:, r:],
            torch.cat([a[..., r:, :r], b[..., r:, :].to(a.dtype)], -1),
        )
        a_s = a[..., :r, :r] + a[..., :r, r:] @ steady[..., :r]
        b_s = b[..., :r, :] + a[..., :r, r:] @ steady[..., r:]
        c_s = c[..., :r] + c[..., r:] @ steady[..., :r]
        d_s = feed + c[..., r:] @ steady[..., r:]
        condition = torch.linalg.cond(a_s) if r else torch.ones(system.batch_shape, dtype=torch.float64)
        refused = ~(condition < 1e8)
        reason = (
            f"Singular perturbation to {r} states gives a state matrix with condition number "
            f"{float(condition.max()):.1e}, which cannot be stored with the output after the state update; use "
            f"balanced truncation or another order."
        )
        if bool(refused.all()):
            raise UnsupportedReductionError(reason)
        eye = torch.eye(r, dtype=a.dtype)
        c_r = torch.linalg.solve(torch.where(refused[..., None, None], eye, a_s).mT, c_s.mT).mT
        small = replace(full, a=a_s, b=b_s, c=c_r, d=d_s - c_r @ b_s, log_a=None)
        return Projected(small, Projection(projection.v[..., :r], projection.w[..., :r]), refused, reason)


def _kept_states(keep: Keep, seed: int, ranks: Tensor, states: int) -> Tensor:
    """The balanced states to keep, `(r,)`, or `(*h, r)` where each system of a bank has its own."""
    rank = int(ranks.min()) if ranks.numel() else 0
    states = min(states, rank)
    if keep is Keep.LARGEST:
        return torch.arange(states)
    if keep is Keep.SMALLEST:
        return (ranks - states).unsqueeze(-1) + torch.arange(states)
    return torch.randperm(rank, generator=torch.Generator().manual_seed(seed))[:states].sort().values
