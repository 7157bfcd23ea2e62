"""One reduction of one system, with the checks that make it safe to store."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import numerical_rank
from compressm.linalg.forms import Frame, in_frame, strictly_causal
from compressm.linalg.gramians import GramianFactors
from compressm.linalg.hankel import HankelSpectrum
from compressm.linalg.modal import modal_basis
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.reducers import Projected, Reducer
from compressm.reduction.result import ConjugateLinear, GramianSource, Reduction
from compressm.reduction.selection import select_states
from compressm.reduction.slots import StoredSystem, nothing, pad, pad_dense, store


@dataclass(frozen=True, eq=False)
class Weighting:
    """Gramian factors with where they come from, and their spectrum."""

    factors: GramianFactors
    spectrum: HankelSpectrum
    controllability: GramianSource
    observability: GramianSource
    horizon: int | None = None

    @property
    def guarantees_stability(self) -> bool:
        """One Gramian that solves its infinite-horizon Lyapunov equation is enough for a stable truncation."""
        white = GramianSource.WHITE in (self.controllability, self.observability)
        return white and self.horizon is None

    @property
    def is_white(self) -> bool:
        """Whether both are the classical Gramians, for which the error bound holds."""
        both = self.controllability is self.observability is GramianSource.WHITE
        return both and self.horizon is None


@dataclass(frozen=True)
class Limits:
    """What a reduced system must satisfy to be stored.

    `conditioning`: the largest condition number of the eigenvectors of the reduced state matrix. `slowdown`: where
    the Gramians do not guarantee stability, 1 - |pole| must stay above (1 - spectral radius of the layer) / slowdown.
    """

    conditioning: float = 1e5
    slowdown: float = 100.0


@dataclass(frozen=True)
class Refusal:
    """Why a reduction was not made; `unstable` asks for other Gramians."""

    reason: str
    unstable: bool = False


def reduce_diagonal(
    system: StateSpace, weighting: Weighting, choice: OrderChoice, reducer: Reducer, limits: Limits
) -> Reduction | Refusal:
    """Reduce a system for a layer with diagonal complex states.

    Takes the largest order not above `choice.states` whose conjugate pairs and real poles fit `choice.slots` stored
    states and whose state matrix can be diagonalized within `limits.conditioning`.
    """
    frame = weighting.factors.frame
    dense = in_frame(system, frame)
    rank = numerical_rank(weighting.spectrum.values)
    notes: list[str] = []
    for states in range(min(choice.states, rank), 0, -1):
        projected = _project(system, dense, weighting, states, reducer, limits)
        if isinstance(projected, Refusal):
            if projected.unstable:
                return projected
            notes.append(projected.reason)
            continue
        basis = modal_basis(projected.system.a, merge_pairs=frame is Frame.REAL)
        if not basis.conditioning <= limits.conditioning:
            notes.append(f"{states} states: eigenvectors too ill-conditioned ({basis.conditioning:.1e})")
            continue
        if basis.slots <= choice.slots:
            return _reduction(store(system, projected, basis, frame), choice, basis.conditioning, weighting, notes)
    if rank == 0:
        stored = nothing(system, _feedthrough(system, reducer))
        return _reduction(stored, _at_least_one_slot(choice), 1.0, weighting, notes)
    return Refusal("no order could be diagonalized: " + _condensed(notes))


def reduce_dense(
    system: StateSpace, weighting: Weighting, choice: OrderChoice, reducer: Reducer, limits: Limits
) -> Reduction | Refusal:
    """Reduce a real system for a layer with a dense real state matrix."""
    rank = numerical_rank(weighting.spectrum.values)
    notes: list[str] = []
    if rank < choice.states:
        notes.append(f"numerical rank is {rank}: {choice.states} states cannot be told apart")
    for states in range(min(choice.states, rank), 0, -1):
        projected = _project(system, system, weighting, states, reducer, limits)
        if isinstance(projected, Refusal):
            if projected.unstable:
                return projected
            notes.append(projected.reason)
            continue
        small, w, v = projected.system, projected.projection.w.mT, projected.projection.v
        return _dense_reduction(small, w, v, small.order, choice, weighting, notes)
    if rank == 0:
        empty = torch.zeros(0, system.order, dtype=torch.float64)
        a, b, c = empty.new_zeros(0, 0), empty.new_zeros(0, system.inputs), empty.new_zeros(system.outputs, 0)
        small = replace(system, a=a, b=b, c=c, d=_feedthrough(system, reducer), log_a=None)
        return _dense_reduction(small, empty, empty.mT, 0, _at_least_one_slot(choice), weighting, notes)
    return Refusal("no order gave a stable system: " + _condensed(notes))


def reduce_by_selection(system: StateSpace, keep: torch.Tensor) -> Reduction:
    """Keep the states `keep` of a diagonal system as they are."""
    rows = torch.eye(system.order, dtype=torch.complex128)[keep]
    maps = ConjugateLinear(rows), ConjugateLinear(rows.mT.clone())
    order = len(keep) * (2 if system.is_complex and system.output == "real" else 1)
    return Reduction(select_states(system, keep), order, *maps, keep, 1.0, GramianSource.WHITE, GramianSource.WHITE)


def _project(
    system: StateSpace, dense: StateSpace, weighting: Weighting, states: int, reducer: Reducer, limits: Limits
) -> Projected | Refusal:
    """The reduced system, or why this order cannot be had; `unstable` only where the Gramians are to blame."""
    try:
        projected = reducer.reduce(dense, weighting.factors, weighting.spectrum, states)
    except UnsupportedReductionError as error:
        return Refusal(str(error))
    refusal = _check_stability(system, projected, weighting, limits)
    if refusal is None:
        return projected
    # with Gramians that guarantee stability only round-off is left: the last states have hardly a digit of their own
    return replace(refusal, unstable=not weighting.guarantees_stability)


def _feedthrough(system: StateSpace, reducer: Reducer) -> torch.Tensor | None:
    """D of the system without any state: for a reducer of the textbook form, h_0 = D + C B is all that is left."""
    return strictly_causal(system).d if reducer.changes_feedthrough else system.d


def _at_least_one_slot(choice: OrderChoice) -> OrderChoice:
    return replace(choice, slots=max(choice.slots, 1) if choice.exact else 1, exact=True)


def _fallbacks(notes: list[str]) -> tuple[str, ...]:
    return (_condensed(notes) + "; a lower order was taken",) if notes else ()


def _condensed(notes: list[str]) -> str:
    if len(notes) <= 2:
        return "; ".join(notes)
    return f"{notes[0]}; {len(notes) - 2} more like it; {notes[-1]}"


def _dense_reduction(
    system: StateSpace,
    restrict: torch.Tensor,
    embed: torch.Tensor,
    real_order: int,
    choice: OrderChoice,
    weighting: Weighting,
    notes: list[str],
) -> Reduction:
    if choice.exact:
        system, restrict, embed = pad_dense(system, restrict, embed, choice.slots)
    maps = ConjugateLinear(restrict), ConjugateLinear(embed)
    return Reduction(system, real_order, *maps, None, 1.0, *_sources(weighting), _fallbacks(notes))


def _reduction(
    stored: StoredSystem, choice: OrderChoice, conditioning: float, weighting: Weighting, notes: list[str]
) -> Reduction:
    if choice.exact:
        stored = pad(stored, choice.slots)
    return Reduction(
        stored.system,
        stored.real_order,
        stored.restrict,
        stored.embed,
        None,
        conditioning,
        *_sources(weighting),
        _fallbacks(notes),
    )


def _sources(weighting: Weighting) -> tuple[GramianSource, GramianSource]:
    return weighting.controllability, weighting.observability


def _check_stability(system: StateSpace, projected: Projected, weighting: Weighting, limits: Limits) -> Refusal | None:
    radius = float(projected.system.spectral_radius().max())
    if weighting.guarantees_stability:
        limit = 1.0
    else:
        gap = -torch.expm1(system.log_a.real.max()) if system.log_a is not None else 1 - system.spectral_radius().max()
        limit = 1 - float(gap) / limits.slowdown
    if radius < min(limit, 1.0):
        return None
    return Refusal(
        f"the reduced system of {projected.system.order} states has the spectral radius {radius:.6g}, "
        f"the limit is {limit:.6g}",
        unstable=True,
    )


def require_feedthrough(reducer: Reducer, full_feedthrough: bool, name: str) -> None:
    """Raise UnsupportedReductionError where a reducer changes D and the layer has no full D."""
    if reducer.changes_feedthrough and not full_feedthrough:
        raise UnsupportedReductionError(
            f"{name}: {type(reducer).__name__} changes D to a full p x m matrix, which this layer cannot store: its "
            f"D is diagonal or absent. Use BalancedTruncation, or a layer with a full D."
        )
