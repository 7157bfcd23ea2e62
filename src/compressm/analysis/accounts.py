"""What is told of one layer: its plan before a cut, its report after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from compressm.adapters.calibration import Capture
from compressm.adapters.holding import reference_tensor
from compressm.adapters.moments import output_change
from compressm.adapters.registry import LayerRef
from compressm.adapters.update import LayerUpdate
from compressm.analysis.decision import Decision, significant_tail
from compressm.analysis.layer import LayerAnalysis
from compressm.analysis.realization import read_system
from compressm.errors import SurgeryError, UnstableSystemError
from compressm.linalg.horizon import horizon_norms
from compressm.linalg.norms import difference, h2_error_and_norm, hinf_estimate, hinf_norm
from compressm.linalg.parallel import side_by_side
from compressm.linalg.statespace import StateSpace
from compressm.reduction.report import BankSpectrum, LayerPlan, LayerReport, mean_spectrum
from compressm.reduction.result import GramianSource, Reduction


def plan_of(analysis: LayerAnalysis, decision: Decision) -> LayerPlan:
    """What a cut of one layer would do."""
    order, choice = analysis.slots, decision.choice
    states = order * analysis.per_slot if choice is None else choice.states
    discarded, bound = _discarded(decision, states)
    return LayerPlan(
        name=analysis.ref.name,
        layer=type(analysis.ref.module).__name__,
        order=order,
        planned_order=order if choice is None else choice.stored(analysis.per_slot),
        planned_states=states,
        states_per_slot=analysis.per_slot,
        hankel_singular_values=mean_spectrum(decision.values),
        discarded=discarded,
        bound=bound if _bounded(analysis, decision) else None,
        controllability=_sources(decision)[0],
        observability=_sources(decision)[1],
        reason=None if choice is not None else "; ".join(decision.fallbacks) or "the criterion wants no smaller order",
        bank=BankSpectrum.of(decision.values),
    )


def report_of(analysis: LayerAnalysis, decision: Decision, update: LayerUpdate | None, seconds: float) -> LayerReport:
    """The report on one layer, measured on what is stored now, after `seconds` of analysis.

    Raises SurgeryError where that is not what `update` meant, and UnstableSystemError where rounding made it unstable.
    """
    begun = time.perf_counter()
    settings, reduction = analysis.settings, decision.reduction
    full, name = analysis.system, analysis.ref.name
    stored = full
    if reduction is not None and update is not None:
        stored = _check_stored(analysis.ref, full, update)
    states = analysis.slots * analysis.per_slot if reduction is None else _states(analysis, reduction)
    discarded, bound = _discarded(decision, states)
    kept = None if reduction is None else reduction.states
    horizon = None if decision.weighting is None else decision.weighting.horizon
    errors = _Errors(0.0, None, 0.0, None, None)
    if reduction is not None:
        errors = _errors(full, stored, settings.exact_norms, horizon, analysis.capture)
    return LayerReport(
        name=name,
        layer=type(analysis.ref.module).__name__,
        order_before=analysis.slots,
        order_after=analysis.slots if reduction is None else stored.order,
        real_order=reduction.real_order if reduction is not None else full.order * (2 if full.is_complex else 1),
        hankel_singular_values=mean_spectrum(decision.values),
        discarded=discarded,
        bound=bound if _bounded(analysis, decision) else None,
        hinf_error=errors.hinf,
        hinf_norm=errors.hinf_norm,
        hinf_exact=settings.exact_norms,
        h2_error=errors.h2,
        h2_norm=errors.h2_norm,
        output_change=errors.output_change,
        controllability=_sources(decision)[0],
        observability=_sources(decision)[1],
        conditioning=reduction.conditioning if reduction is not None else 1.0,
        fallbacks=decision.fallbacks,
        seconds=seconds + time.perf_counter() - begun,
        bank=BankSpectrum.of(decision.values, kept),
        fit_before=None if decision.fitted is None else decision.fitted.before,
        fit_after=None if decision.fitted is None else decision.fitted.after,
    )


def _sources(decision: Decision) -> tuple[str, str]:
    if decision.weighting is None:
        return "none", "none"
    horizon = "" if decision.weighting.horizon is None else f" ({decision.weighting.horizon} steps)"
    p, q = decision.weighting.controllability, decision.weighting.observability
    white = GramianSource.WHITE
    return p.value + horizon * (p is white), q.value + horizon * (q is white)


def _bounded(analysis: LayerAnalysis, decision: Decision) -> bool:
    return analysis.has_bound and decision.weighting is not None and decision.weighting.is_white


def _discarded(decision: Decision, states: Tensor | int) -> tuple[float, float]:
    """The discarded fraction of the sum of the values, and 2 * tail."""
    tail, bound = significant_tail(decision.values, states)
    if decision.discarded is None:
        return tail, bound
    total = float(decision.values.sum())
    return (float(decision.discarded.sum()) / total if total > 0 else 0.0), bound


def _states(analysis: LayerAnalysis, reduction: Reduction) -> Tensor | int:
    """How many balanced states (or kept states, for a selection) each system has after a cut."""
    if reduction.states is not None:
        return reduction.states
    return reduction.order if analysis.per_slot == 1 else reduction.real_order


def _check_stored(ref: LayerRef, full: StateSpace, update: LayerUpdate) -> StateSpace:
    stored = read_system(ref)
    if stored.order != update.order:
        raise SurgeryError(
            f"{ref.label}: the adapter's update declares the order {update.order}, but {stored.order} is read back."
        )
    if full.is_stable() and not stored.is_stable():
        raise UnstableSystemError(
            f"{ref.label}: the reduced layer is stable in double precision, but rounding to "
            f"{reference_tensor(ref.module).dtype} makes it unstable. Keep this layer's parameters in a wider dtype."
        )
    return stored


@dataclass(frozen=True)
class _Errors:
    hinf: float | None
    hinf_norm: float | None
    h2: float | None
    h2_norm: float | None
    output_change: float | None


def _errors(full: StateSpace, stored: StateSpace, exact: bool, horizon: int | None, capture: Capture) -> _Errors:
    """The norms, over the horizon of the Gramians where there are no others, and the change of captured outputs."""
    error, changed = difference(full, stored), partial(output_change, full, stored, capture)
    if not error.is_stable():
        if horizon is None:
            return _Errors(None, None, None, None, changed())
        lost, whole = horizon_norms(error, horizon), horizon_norms(full, horizon)
        return _Errors(lost.gain, whole.gain, lost.energy, whole.energy, changed())
    peak = hinf_norm if exact else hinf_estimate
    tasks: list[Callable[[], tuple[float | None, ...]]] = [
        lambda: (changed(),),  # what takes longest begins first
        lambda: (peak(error),),
        lambda: h2_error_and_norm(full, stored),
        lambda: (peak(full),),
    ]
    (change,), (hinf,), (h2, h2_whole), (hinf_whole,) = side_by_side(tasks)
    return _Errors(hinf, hinf_whole, h2, h2_whole, change)
