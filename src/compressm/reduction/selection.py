"""Choosing among the present states of a diagonal system: modal truncation and keep-sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from compressm.checks import require_integer, require_kind
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import Keep
from compressm.reduction.result import ConjugateLinear, GramianSource, Reduction


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

    def __post_init__(self) -> None:
        require_kind("ModalTruncation.score", self.score, ModalScore)
        require_kind("ModalTruncation.keep", self.keep, Keep)
        require_integer("ModalTruncation.seed", self.seed, 0)

    def kept_states(self, system: StateSpace, slots: int, rules: SelectionRules | None = None) -> Tensor:
        """The indices (increasing) of the kept states of a diagonal system, as `rules` allow: about `slots` of them.

        `(r,)` for a single system or one keep-set for a bank (then by the mean of the scores over its systems, each
        relative to its system's sum), else `(*h, r)`.
        """
        rules = SelectionRules() if rules is None else rules
        return rules.states_of(self.ranking(system, rules)[..., : rules.groups_within(slots)])

    def ranking(self, system: StateSpace, rules: SelectionRules) -> Tensor:
        """All groups of states in the order in which they are kept, `(G,)` or `(*h, G)`."""
        scores = rules.grouped(modal_scores(system, self.score))
        if self.keep is not Keep.RANDOM:
            return scores.argsort(dim=-1, descending=self.keep is Keep.LARGEST, stable=True)
        groups = torch.randperm(scores.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        return groups if rules.shared else groups.expand(*system.batch_shape, -1)


@dataclass(frozen=True, eq=False)
class SelectionRules:
    """What a layer that stores a choice of its states can express.

    * `group`: states g i .. g i + g - 1 are kept or dropped together, such as the two of an oscillator.
    * `shared`: all systems of a bank keep the same states, because they share the poles.
    * `refit_inputs`, `refit_outputs`: whether `write` stores new weights B, C of the states that are kept.
    * `input_direction` `(*h, n)`: the rows of B that belong to a group are this direction times one real row, which is
      free; None where each (complex) row is free. `output_direction` `(*h, n)`: likewise for the columns of C.
    """

    group: int = 1
    shared: bool = False
    refit_inputs: bool = False
    refit_outputs: bool = False
    input_direction: Tensor | None = None
    output_direction: Tensor | None = None

    def grouped(self, scores: Tensor) -> Tensor:
        """Scores `(*h, n)` of states summed over groups, `(*h, n / g)`; over the systems too where they share."""
        groups = scores.unflatten(-1, (-1, self.group)).sum(-1)
        if not self.shared or groups.ndim == 1:
            return groups
        groups = groups.flatten(0, -2)
        return (groups / groups.sum(-1, keepdim=True).clamp_min(torch.finfo(groups.dtype).tiny)).mean(0)

    def groups_within(self, slots: int) -> int:
        """How many groups fit `slots` stored states; always one."""
        return max(1, slots // self.group)

    def states_of(self, groups: Tensor) -> Tensor:
        """The indices (increasing) of the states of the groups."""
        within = torch.arange(self.group)
        return (groups.sort(-1).values.unsqueeze(-1) * self.group + within).flatten(-2)


def select_states(system: StateSpace, keep: Tensor) -> StateSpace:
    """The system with only the states `keep`, `(r,)` or of each system of a bank its own `(*h, r)`.

    A dense system keeps its rows and columns: that is exact where kept and dropped states do not act on each other.
    """
    keep = keep.expand(*system.batch_shape, keep.shape[-1])
    a = torch.take_along_dim(system.a, keep.unsqueeze(-1), -2) if not system.is_diagonal else system.a.gather(-1, keep)
    return replace(
        system,
        a=a if system.is_diagonal else torch.take_along_dim(a, keep.unsqueeze(-2), -1),
        b=torch.take_along_dim(system.b, keep.unsqueeze(-1), -2),
        c=torch.take_along_dim(system.c, keep.unsqueeze(-2), -1),
        log_a=None if system.log_a is None else system.log_a.gather(-1, keep),
    )


def reduce_by_selection(system: StateSpace, keep: Tensor) -> Reduction:
    """Keep the states `keep`, `(r,)` or `(*h, r)`, as they are."""
    rows = torch.eye(system.order, dtype=torch.complex128)[keep.expand(*system.batch_shape, keep.shape[-1])]
    maps = ConjugateLinear(rows), ConjugateLinear(rows.mT.clone())
    order = keep.shape[-1] * (2 if system.is_complex and system.output == "real" else 1)
    return Reduction(select_states(system, keep), order, *maps, keep, 1.0, GramianSource.WHITE, GramianSource.WHITE)
