"""Choosing among the present states of a diagonal system: modal truncation and keep-sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import Keep


class ModalScore(Enum):
    """How the weight of one mode is measured."""

    PEAK_GAIN = "peak-gain"  # |c_i| |b_i| / (1 - |a_i|): the H-infinity norm of the mode alone
    ENERGY = "energy"  # |c_i| |b_i| / sqrt(1 - |a_i|^2): its H2 norm alone


def modal_scores(system: StateSpace, score: ModalScore = ModalScore.PEAK_GAIN) -> Tensor:
    """The weight `(*h, n)` of each state of a diagonal discrete system, taken alone."""
    size = torch.linalg.vector_norm(system.b, dim=-1) * torch.linalg.vector_norm(system.c, dim=-2)
    decay = -system.log_a.real if system.log_a is not None else -torch.log(system.a.abs())
    if score is ModalScore.PEAK_GAIN:
        return size / -torch.expm1(-decay)
    return size / (-torch.expm1(-2 * decay)).sqrt()


@dataclass(frozen=True)
class ModalTruncation:
    """Keep the states with the largest modal scores, as they are; no balancing, no change of basis.

    Stable, keeps the poles, and is all that some layers admit; for the same order its error is far above that of
    balanced truncation. `keep` RANDOM (seeded) and SMALLEST are for ablation studies.
    """

    score: ModalScore = ModalScore.PEAK_GAIN
    keep: Keep = Keep.LARGEST
    seed: int = 0

    def kept_states(self, system: StateSpace, slots: int) -> Tensor:
        """The indices (increasing) of the kept states of an unbatched diagonal system."""
        n = system.order
        if self.keep is Keep.RANDOM:
            return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[:slots].sort().values
        order = modal_scores(system, self.score).argsort(descending=self.keep is Keep.LARGEST, stable=True)
        return order[:slots].sort().values


def select_states(system: StateSpace, keep: Tensor) -> StateSpace:
    """The system with only the states `keep`; diagonal systems."""
    return replace(
        system,
        a=system.a[..., keep],
        b=system.b[..., keep, :],
        c=system.c[..., keep],
        log_a=None if system.log_a is None else system.log_a[..., keep],
    )
