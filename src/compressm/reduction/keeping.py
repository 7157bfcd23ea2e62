"""Choosing among the present states by what balancing knows of them, with weights fitted anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from compressm.checks import require_kind, require_number
from compressm.errors import UnsupportedReductionError
from compressm.linalg.forms import Frame, real_ports
from compressm.linalg.parallel import in_pieces, singular_values
from compressm.linalg.statespace import StateSpace
from compressm.reduction.pursuit import Pursuit
from compressm.reduction.regressors import co_regressors, regressors
from compressm.reduction.result import ConjugateLinear, Reduction
from compressm.reduction.selection import (
    ModalTruncation,
    SelectionRules,
    modal_scores,
    reduce_by_selection,
    select_states,
)
from compressm.reduction.spans import RCOND, disturbed_factor, pseudo_inverse, values_lost
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

    States that nearly span each other can be fitted with huge weights that cancel, an error that is small only until
    the next step of training moves a pole. So each state is taken to be disturbed, for itself, by the part
    `disturbance` of its own size, P + disturbance^2 diag(P) in place of P: the squared error grows by
    disturbance^2 sum_i P_ii |c'_i - c_i|^2. It is a ridge towards the weights that the states have; where the states
    that go contribute nothing the others keep theirs. 0 gives the least error, for a layer that is not trained further.

    Raises ConfigError for a disturbance below 0 or not finite.
    """

    refit: bool = True
    disturbance: float = 0.03

    def __post_init__(self) -> None:
        require_kind("BalancedSelection.refit", self.refit, bool)
        require_number(
            "BalancedSelection.disturbance", self.disturbance, 0, wanted="a part of a state's size, 0 or more"
        )


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

    def reduced(self, slots: int) -> StateSpace:
        """The system of `reduction`, where its maps are not wanted."""
        return self.reduction(slots).system

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

    With x' = R x the kept states and E x' the best estimate of all (disturbed) states from them, or without refitting
    the kept ones and zeros, what is lost has the singular values of Lq^T (I - E R) Lp, P = Lp Lp^T, Q = Lq Lq^T. For
    balanced truncation these are the Hankel singular values that it cuts off, and by the theorem of Eckart, Young and
    Mirsky no choice of as many states has a smaller sum.

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
        inputs = reducer.refit and rules.refit_inputs and not self._outputs
        (b, c), factors = real_ports(system), weighting.factors
        self._factor, self._other = factors.controllability, factors.observability
        self._regressors = co_regressors(system, rules) if inputs else regressors(system, rules)
        if inputs:
            self._factor, self._other = self._other, self._factor
        self._disturbed = self._factor
        if reducer.disturbance > 0:
            disturb, size = partial(disturbed_factor, reducer.disturbance), self._factor.shape[-2:].numel()
            (self._disturbed,) = in_pieces(disturb, size, system.batch_shape, self._factor)
        self._seen = (b.mT if inputs else c) @ self._disturbed
        self._directed = (rules.input_direction if inputs else rules.output_direction) is not None
        self._discarded: dict[int, Tensor] = {}
        self._last: tuple[int, Tensor, Tensor] | None = None
        self._pursuit: Pursuit | None = None
        if self._outputs or inputs:
            rows = self._regressors.flatten(-3, -2)
            bases = rows @ self._disturbed if self._directed else self._disturbed[..., rows.argmax(-1), :]  # units
            self._pursuit = Pursuit(self._seen, bases.unflatten(-2, self._regressors.shape[-3:-1]), rules.shared)

    @property
    def values(self) -> Tensor:
        """The Hankel singular values."""
        return self._weighting.spectrum.values

    def reduction(self, slots: int) -> Reduction:
        """The states kept, with the weights that may change fitted anew."""
        system, keep = self.system, self.rules.states_of(self._groups(slots))
        rows = torch.eye(system.order, dtype=torch.complex128)[keep.expand(*system.batch_shape, -1)]
        restrict, embed, small = ConjugateLinear(rows), ConjugateLinear(rows.mT.clone()), select_states(system, keep)
        if self._pursuit is not None:
            fitted = self._fitted(torch.cat([self._disturbed, self._seen], -2), self._pursuit, slots)
            states, weights = fitted.split([self._disturbed.shape[-2], self._seen.shape[-2]], -2)
            small = self._with_weights(small, weights)
            if self._outputs:
                embed = _between_states(states, system)
            else:
                restrict = _between_states(states.mT, system)
        order = keep.shape[-1] * (2 if system.is_complex and system.output == "real" else 1)
        sources = self._weighting.controllability, self._weighting.observability
        refitted = self._pursuit is not None
        return Reduction(small, order, restrict, embed, keep, 1.0, *sources, refitted=refitted)

    def reduced(self, slots: int) -> StateSpace:
        """The states kept, with the weights that may change fitted anew."""
        small = select_states(self.system, self.rules.states_of(self._groups(slots)))
        if self._pursuit is None:
            return small
        return self._with_weights(small, self._fitted(self._seen, self._pursuit, slots))

    def _with_weights(self, small: StateSpace, weights: Tensor) -> StateSpace:
        """With the weights `(*h, k, r)` of [Re x; Im x] as C, or as B^T."""
        if small.is_complex:
            re, im = weights.tensor_split(2, -1)
            weights = torch.complex(re, -im)  # Re(c x) = Re c Re x - Im c Im x
        if self._outputs:
            return replace(small, c=_like(weights, small.c))
        return replace(small, b=_like(weights.mH, small.b))

    def discarded(self, slots: int) -> Tensor:
        """The sum of the singular values of what is lost; those in the round-off of the largest count as zero."""
        if slots not in self._discarded:
            values = self._lost(slots)
            floor = self.values.shape[-1] * torch.finfo(values.dtype).eps * self.values.amax(-1, keepdim=True)
            self._discarded[slots] = torch.where(values > floor, values, 0.0).sum(-1)
        return self._discarded[slots]

    def _lost(self, slots: int) -> Tensor:
        """The singular values of what is lost."""
        keep, factor = self.rules.states_of(self._groups(slots)), self._factor
        parts = self._parts(keep).unsqueeze(-1)
        if self._pursuit is None:
            return singular_values(
                self._other.mT @ factor.scatter(-2, parts.expand(*parts.shape[:-1], factor.shape[-1]), 0.0)
            )
        if self._directed:  # the states that are kept tell more than what is read of them
            rows = torch.take_along_dim(self._disturbed, parts, -2)
            sizes = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            scale = torch.where(sizes > 0, sizes, torch.inf)
            estimate = (self._disturbed @ torch.linalg.pinv(rows / scale, rtol=RCOND)) / scale.mT
        else:
            estimate = self._fitted(self._disturbed, self._pursuit, slots)
        rows = torch.take_along_dim(factor, parts, -2)
        tensors = self._other, factor, estimate, rows
        (values,) = in_pieces(values_lost, factor.shape[-2:].numel(), factor.shape[:-2], *tensors)
        return values

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

    def _fitted(self, functions: Tensor, pursuit: Pursuit, slots: int) -> Tensor:
        """W `(*h, k, r)` with Z x ~ W x' in the real frame, the best for disturbed states, by what may be fitted.

        `functions` is Z F for their second moments F F^T. With R the regressors and S the columns of the kept states,
        W = Z F F^T R^T (R F F^T R^T)^+ R S = Z F (R F)^+ R S.
        """
        count = self.rules.groups_within(slots)
        inverse, scale = self._inverse(pursuit, count)
        return (functions @ inverse) @ (self._regressing(pursuit.first(count)) / scale)

    def _inverse(self, pursuit: Pursuit, count: int) -> tuple[Tensor, Tensor]:
        """(R F)^+ with the rows of R F divided by their sizes, and these."""
        if self._last is not None and self._last[0] == count:  # a cut asks for several things of one size
            return self._last[1:]
        moved = pursuit.rows(count)
        sizes = torch.linalg.vector_norm(moved, dim=-1, keepdim=True).unflatten(-2, (count, -1))
        still = sizes <= RCOND * torch.linalg.vector_norm(sizes, dim=-2, keepdim=True)  # Im x of a real pole, say
        scale = torch.where(still, torch.inf, sizes).flatten(-3, -2)
        size = moved.shape[-2] * moved.shape[-1]
        (inverse,) = in_pieces(pseudo_inverse, size, moved.shape[:-2], moved / scale, pursuit.basis(count))
        self._last = count, inverse, scale
        return inverse, scale

    def _regressing(self, groups: Tensor) -> Tensor:
        """R S `(*h, k q, r)`, without batch dimensions where it is the same for all."""
        keep = self.rules.states_of(groups)
        if groups.ndim == 1:
            parts = torch.cat([keep, keep + self.system.order]) if self.system.is_complex else keep
            return self._regressors[..., groups, :, :][..., parts].flatten(-3, -2)
        every = self._regressors.expand(*self.system.batch_shape, *self._regressors.shape[-3:])
        chosen = torch.take_along_dim(every, groups[..., None, None], -3)
        return torch.take_along_dim(chosen, self._parts(keep)[..., None, None, :], -1).flatten(-3, -2)


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
