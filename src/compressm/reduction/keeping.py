"""Choosing among the present states by what balancing knows of them, with weights fitted anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.checks import require_kind
from compressm.errors import UnsupportedReductionError
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.parallel import singular_values
from compressm.linalg.statespace import StateSpace
from compressm.reduction.pursuit import RCOND, Pursuit
from compressm.reduction.result import ConjugateLinear, Reduction
from compressm.reduction.selection import (
    ModalTruncation,
    SelectionRules,
    modal_scores,
    reduce_by_selection,
    select_states,
)
from compressm.reduction.weighting import Weighting


@dataclass(frozen=True)
class BalancedSelection:
    """Keep some of the present states, chosen under the same Gramians that would balance the layer.

    For layers that cannot store a general change of states (oscillators, poles shared by channels). Where the layer
    allows it (`SelectionRules`) the output weights of the kept states are fitted anew: with the state covariance P, and
    rows K of the kept states, C' = C P K^T (K P K^T)^{-1} minimises the mean squared error of the output, which for the
    classical P is the H2 error for those poles and that B. States are taken one after the other, each time the one that
    lowers the fitted error most (orthogonal matching pursuit, Pati et al. 1993). Where only B may change, all this is
    done to the dual system. Where neither may, or without `refit`, the states with the largest sqrt(P_ii Q_ii) stay
    as they are.
    """

    refit: bool = True

    def __post_init__(self) -> None:
        require_kind("BalancedSelection.refit", self.refit, bool)


def balanced_scores(system: StateSpace, weighting: Weighting) -> Tensor:
    """sqrt(P_ii Q_ii) of each state `(*h, n)`, summed over its real and imaginary part in the real frame.

    Invariant under a diagonal scaling of the states, and their sum is no smaller than that of the Hankel singular
    values.
    """
    p, q = (
        torch.linalg.vector_norm(f, dim=-1)
        for f in (weighting.factors.controllability, weighting.factors.observability)
    )
    return _by_state(p * q, system.order)


class KeepSets(ABC):
    """Choices of the present states of one layer, by whole groups; each contains the smaller ones."""

    def __init__(self, system: StateSpace, rules: SelectionRules) -> None:
        self.system, self.rules = system, rules

    @property
    def sizes(self) -> range:
        """The numbers of states that can be kept, below all of them."""
        return range(self.rules.group, self.system.order, self.rules.group)

    def size_within(self, slots: int) -> int:
        """The largest number of states up to `slots` that whole groups make up; always one group."""
        return self.rules.groups_within(slots) * self.rules.group

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """What chooses the order, `(*h, k)` from the largest."""

    @abstractmethod
    def reduction(self, slots: int) -> Reduction:
        """The system with about `slots` of its states, `rules.shared` the same ones in all of a bank."""

    @abstractmethod
    def discarded(self, slots: int) -> Tensor:
        """How much of the sum of `values` that loses, `(*h,)`."""


class ModalKeepSets(KeepSets):
    """The choices of a `ModalTruncation`; the values are the scores of the states."""

    def __init__(self, system: StateSpace, reducer: ModalTruncation, rules: SelectionRules) -> None:
        super().__init__(system, rules)
        self._scores = modal_scores(system, reducer.score)
        self._ranking = reducer.ranking(system, rules)

    @property
    def values(self) -> Tensor:
        """The modal scores."""
        return self._scores.sort(dim=-1, descending=True).values

    def reduction(self, slots: int) -> Reduction:
        """The states that the ranking has first."""
        return reduce_by_selection(self.system, self._kept(slots))

    def discarded(self, slots: int) -> Tensor:
        """The sum of the scores of the states that go."""
        keep = self._kept(slots).expand(*self.system.batch_shape, -1)
        return self._scores.scatter(-1, keep, 0.0).sum(-1)

    def _kept(self, slots: int) -> Tensor:
        return self.rules.states_of(self._ranking[..., : self.rules.groups_within(slots)])


class BalancedKeepSets(KeepSets):
    """The choices of a `BalancedSelection` under given Gramians; the values are the Hankel singular values.

    With x' = R x the kept states and E x' the best estimate of all states from them (without refitting, the kept ones
    and zeros), what is lost has the singular values of Lq^T (I - E R) Lp, P = Lp Lp^T, Q = Lq Lq^T. For balanced
    truncation these are the Hankel singular values that it cuts off, and by the theorem of Eckart, Young and Mirsky no
    choice of as many states has a smaller sum.

    Raises UnsupportedReductionError for Gramians that are not in the real frame.
    """

    def __init__(
        self, system: StateSpace, weighting: Weighting, reducer: BalancedSelection, rules: SelectionRules
    ) -> None:
        super().__init__(system, rules)
        if weighting.factors.frame is not Frame.REAL:
            raise UnsupportedReductionError(
                "States are selected by balanced scores in the real frame; use Balancing.REAL."
            )
        self._weighting = weighting
        self._outputs = reducer.refit and rules.refit_outputs
        self._inputs = reducer.refit and rules.refit_inputs and not self._outputs
        dense, factors = in_frame(system, Frame.REAL), weighting.factors
        self._factor, self._other = factors.controllability, factors.observability
        self._regressors, seen = _regressors(system, rules), dense.c
        if self._inputs:
            self._factor, self._other = self._other, self._factor
            self._regressors, seen = _co_regressors(system, rules), dense.b.mT
        self._pursuit: Pursuit | None = None
        if self._outputs or self._inputs:
            bases = self._regressors @ self._factor.unsqueeze(-3)
            self._pursuit = Pursuit(seen @ self._factor, bases, rules.shared)

    @property
    def values(self) -> Tensor:
        """The Hankel singular values."""
        return self._weighting.spectrum.values

    def reduction(self, slots: int) -> Reduction:
        """The states kept, with the weights that may change fitted anew."""
        system, groups = self.system, self._groups(slots)
        keep = self.rules.states_of(groups)
        rows = torch.eye(system.order, dtype=torch.complex128)[keep.expand(*system.batch_shape, -1)]
        restrict, embed = ConjugateLinear(rows), ConjugateLinear(rows.mT.clone())
        small = select_states(system, keep)
        if self._outputs:
            embed = _between_states(self._estimate(groups, keep), system)
            small = replace(small, c=_like(embed.right(system.c.to(torch.complex128)), small.c))
        elif self._inputs:
            restrict = _between_states(self._estimate(groups, keep).mT, system)
            small = replace(small, b=_like(restrict(system.b.to(torch.complex128)), small.b))
        order = keep.shape[-1] * (2 if system.is_complex and system.output == "real" else 1)
        sources = self._weighting.controllability, self._weighting.observability
        refitted = self._pursuit is not None
        return Reduction(small, order, restrict, embed, keep, 1.0, *sources, refitted=refitted)

    def discarded(self, slots: int) -> Tensor:
        """The sum of the singular values of what is lost; those in the round-off of the largest count as zero."""
        parts = self._parts(self.rules.states_of(self._groups(slots))).unsqueeze(-1)
        product, factor = self._other.mT @ self._factor, self._factor
        if self._pursuit is None:
            lost = self._other.mT @ factor.scatter(-2, parts.expand(*parts.shape[:-1], factor.shape[-1]), 0.0)
        else:
            rows = torch.take_along_dim(factor, parts, -2)
            sizes = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            rows = rows / torch.where(sizes > 0, sizes, 1.0)
            lost = product - (product @ torch.linalg.pinv(rows, rtol=RCOND)) @ rows
        values = singular_values(lost)
        floor = values.shape[-1] * torch.finfo(values.dtype).eps * self.values.amax(-1, keepdim=True)
        return torch.where(values > floor, values, 0.0).sum(-1)

    def _groups(self, slots: int) -> Tensor:
        count = self.rules.groups_within(slots)
        if self._pursuit is not None:
            return self._pursuit.first(count)
        scores = self.rules.grouped(balanced_scores(self.system, self._weighting))
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]

    def _parts(self, keep: Tensor) -> Tensor:
        """The places of kept states in the real frame, `(*h, r)`."""
        keep = keep.expand(*self.system.batch_shape, -1)
        return torch.cat([keep, keep + self.system.order], -1) if self.system.is_complex else keep

    def _fit(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled rows R of the kept groups and (R F)^+, for second moments F F^T."""
        h, factor = self.system.batch_shape, self._factor
        chosen = groups.sort(-1).values.expand(*h, -1)[..., None, None]
        picked = torch.take_along_dim(self._regressors.expand(*h, *self._regressors.shape[-3:]), chosen, -3)
        moved = picked @ factor.unsqueeze(-3)  # (*h, k, q, l)
        sizes = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        still = sizes <= RCOND * torch.linalg.vector_norm(sizes, dim=-2, keepdim=True)  # Im x of a real pole, say
        scale = torch.where(still, torch.inf, sizes)
        rows, moved = (picked / scale).flatten(-3, -2), (moved / scale).flatten(-3, -2)
        return rows, torch.linalg.pinv(moved, rtol=RCOND)

    def _estimate(self, groups: Tensor, keep: Tensor) -> Tensor:
        """M `(*h, k, r)` in the real frame with x ~ M x', the best for second moments F F^T, by what may be fitted.

        M = F F^T R^T (R F F^T R^T)^+ R S, with S the columns of the kept states.
        """
        rows, inverse = self._fit(groups)
        return (self._factor @ inverse) @ torch.take_along_dim(rows, self._parts(keep).unsqueeze(-2), -1)


def _regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """The real functions of the states that a group's output weights multiply, `(*h, G, q, k)` in the real frame.

    Without a direction Re x and Im x of each of its states; with one the sum of Re(direction_i x_i) over the group.
    """
    return _functions(system, rules.output_direction, rules.group)


def _co_regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """As `_regressors` for input weights: the b_i = direction_i beta of a group act on Re x_i and Im x_i together."""
    direction = rules.input_direction
    return _functions(system, None if direction is None else direction.conj(), rules.group)


def _functions(system: StateSpace, direction: Tensor | None, group: int) -> Tensor:
    n, pairs = system.order, system.is_complex
    eye = torch.eye(2 * n if pairs else n, dtype=torch.float64)
    if direction is None:
        rows = eye.reshape(2 if pairs else 1, n // group, group, -1).transpose(0, 1)
        return rows.reshape(n // group, -1, eye.shape[-1])
    parts = eye[:n] * direction.real.unsqueeze(-1)
    if pairs and direction.is_complex():
        parts = parts - eye[n:] * direction.imag.unsqueeze(-1)
    return parts.unflatten(-2, (n // group, group)).sum(-2, keepdim=True)


def _between_states(matrix: Tensor, system: StateSpace) -> ConjugateLinear:
    """The map of complex states that a real matrix between their [Re x; Im x] stands for."""
    if not system.is_complex:
        return ConjugateLinear(matrix.to(torch.complex128))
    rows, half = matrix.shape[-2] // 2, matrix.shape[-1] // 2
    complex_rows = torch.complex(matrix[..., :rows, :], matrix[..., rows:, :])
    of_re, of_im = complex_rows[..., :half], complex_rows[..., half:]
    return ConjugateLinear((of_re - 1j * of_im) / 2, (of_re + 1j * of_im) / 2)


def _like(value: Tensor, old: Tensor) -> Tensor:
    return value if old.is_complex() else value.real


def _by_state(values: Tensor, order: int) -> Tensor:
    """Values of the real frame summed over the parts of each state."""
    return values.unflatten(-1, (-1, order)).sum(-2)
