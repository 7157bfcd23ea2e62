"""Gramian factors with their spectrum and where they come from, and what a reduced system must satisfy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.checks import require_number
from compressm.linalg.gramians import GramianFactors
from compressm.linalg.hankel import HankelSpectrum
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import GramianSource


@dataclass(frozen=True, eq=False)
class Weighting:
    """Gramian factors with where they come from, and their spectrum; `shared` where a bank has one pair of them."""

    factors: GramianFactors
    spectrum: HankelSpectrum
    controllability: GramianSource
    observability: GramianSource
    horizon: int | None = None
    shared: bool = False

    @property
    def guarantees_stability(self) -> bool:
        """One Gramian that solves its infinite-horizon Lyapunov equation is enough for a stable truncation."""
        white = GramianSource.WHITE in (self.controllability, self.observability)
        return white and self.horizon is None

    @property
    def is_white(self) -> bool:
        """Whether both are the classical Gramians of one system, for which the error bound holds."""
        both = self.controllability is self.observability is GramianSource.WHITE
        return both and self.horizon is None and not self.shared

    def flattened(self) -> Weighting:
        """The same for one batch dimension: a single system becomes a bank of one."""
        f, s = self.factors, self.spectrum

        def flat(t: Tensor) -> Tensor:
            return t.reshape(-1, *t.shape[-2:])

        factors = GramianFactors(flat(f.controllability), flat(f.observability), f.frame)
        values = s.values.reshape(-1, s.values.shape[-1])
        return replace(self, factors=factors, spectrum=HankelSpectrum(values, flat(s.left), flat(s.right)))


@dataclass(frozen=True)
class Limits:
    """What a reduced system must satisfy to be stored.

    `conditioning`: the largest condition number of the eigenvectors of the reduced state matrix. `slowdown`: where
    the Gramians do not guarantee stability, 1 - |pole| must stay above (1 - spectral radius of the layer) / slowdown.
    """

    conditioning: float = 1e5
    slowdown: float = 100.0

    def __post_init__(self) -> None:
        require_number("Limits.conditioning", self.conditioning, 0, wanted="a condition number", above=True)
        require_number("Limits.slowdown", self.slowdown, 0, wanted="a factor above 0", above=True)

    def largest_radius(self, system: StateSpace, weighting: Weighting) -> Tensor:
        """The spectral radius below which each reduced system `(*h,)` of a bank must stay."""
        if weighting.guarantees_stability:
            return torch.ones(system.batch_shape, dtype=torch.float64)
        if system.log_a is not None:
            gap = -torch.expm1(system.log_a.real.amax(-1))
        else:
            gap = 1 - system.spectral_radius()
        return (1 - gap / self.slowdown).clamp_max(1.0)


@dataclass(frozen=True)
class Refusal:
    """Why a reduction was not made; `unstable` asks for other Gramians."""

    reason: str
    unstable: bool = False
