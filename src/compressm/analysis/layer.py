"""The analysis of one layer: its system, its Gramians, the order that the criterion wants, and the reduction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from compressm.adapters.base import Form
from compressm.adapters.calibration import Capture
from compressm.adapters.fitting import fitted_reduction
from compressm.adapters.registry import LayerRef
from compressm.analysis.decision import Decision
from compressm.analysis.gramians import LayerGramians, is_undamped
from compressm.analysis.realization import read_system
from compressm.errors import InvalidSystemError, UnstableSystemError, UnsupportedReductionError
from compressm.linalg.clamping import Clamped, clamp_poles
from compressm.linalg.forms import Frame, states_per_slot
from compressm.linalg.horizon import horizon_norms
from compressm.linalg.norms import difference, hinf_estimate, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import Budget, OrderChoice, Spectrum, Tolerance, tails
from compressm.reduction.fitting import Fitted, NotFitted
from compressm.reduction.keeping import BalancedKeepSets, BalancedSelection, KeepSets, ModalKeepSets
from compressm.reduction.reduce import reduce_dense, reduce_diagonal, require_feedthrough
from compressm.reduction.reducers import BalancedTruncation, Reducer
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.selection import ModalTruncation
from compressm.reduction.shared import reduce_shared, share
from compressm.reduction.trials import Trial, Trials
from compressm.reduction.weighting import Refusal, Weighting
from compressm.settings import BatchOrder, CompressionSettings, Unstable

_logger = logging.getLogger(__name__)


class LayerAnalysis:
    """One layer of a model under given settings. Reads, computes, changes nothing."""

    def __init__(
        self, ref: LayerRef, settings: CompressionSettings, capture: Capture | None, budget: Budget | None
    ) -> None:
        self.ref, self.settings, self.budget = ref, settings, budget
        self.capture = capture if capture is not None else Capture()
        self.system = read_system(ref)
        self.slots = ref.adapter.slots(ref.module, self.system)
        self.frame = settings.balancing.frame if self.system.is_complex else Frame.REAL
        if self.system.output == "complex":
            self.frame = Frame.COMPLEX
        self.reducer: Reducer | BalancedSelection | ModalTruncation = settings.reducer
        if isinstance(settings.reducer, Reducer):
            require_feedthrough(settings.reducer, ref.adapter.full_feedthrough, ref.label)
            if ref.adapter.form is Form.SELECTION:
                self.reducer = BalancedSelection()
        if isinstance(self.reducer, BalancedSelection):
            self._require_own_states(ref.adapter.form is Form.SELECTION)
            self.frame = Frame.REAL if self.system.output == "real" else self.frame
        self._clamped: Clamped | None = None
        if settings.unstable is Unstable.CLAMP and not (self.system.is_stable() or is_undamped(self.system)):
            self._clamped = self._clamp()
            self.system = self._clamped.system
        self.gramians = LayerGramians(ref.label, self.system, self.frame, self.capture, settings, self.reducer)

    @property
    def per_slot(self) -> int:
        """How many of the values that choose the order belong to one stored state."""
        if isinstance(self.reducer, ModalTruncation):
            return 1
        per, order = states_per_slot(self.system, self.frame), self.system.order
        return per if self.slots == order else per * order // self.slots

    @property
    def has_bound(self) -> bool:
        """Whether the reduction keeps to the error bound of balanced truncation under white Gramians."""
        return isinstance(self.reducer, Reducer) and self.reducer.has_bound

    def decide(self, *, reduce: bool) -> Decision:
        """Choose the order and, with `reduce`, reduce; where Gramians give an unstable system, with the next ones.

        The order of falling back is: the Gramians asked for, data with classical observability, white input, no cut.
        An unstable layer, where its Gramians need a stable one, is what `settings.unstable` says.
        """
        try:
            decision = self._decide(reduce=reduce)
        except UnstableSystemError as error:
            if self.settings.unstable is not Unstable.SKIP:
                raise
            _logger.warning("%s This layer is not cut.", error)
            nothing = self.system.a.real.new_zeros(*self.system.batch_shape, 0)
            return Decision(nothing, None, None, None, (f"unstable, not cut: {error}",))
        if self._clamped is None:
            return decision
        stored = "" if decision.reduction is not None else "; this is analysed, the layer keeps its poles"
        _logger.warning("%s: %s%s.", self.ref.label, self._clamped, stored)
        return replace(decision, fallbacks=(f"{self._clamped}{stored}", *decision.fallbacks))

    def _clamp(self) -> Clamped:
        """The system with its poles moved inside the unit circle, where the layer can store them there."""
        stores_poles = self.ref.adapter.form in (Form.DIAGONAL, Form.DENSE)
        if not (stores_poles and isinstance(self.reducer, Reducer)):
            raise UnstableSystemError(
                f"{self.ref.label}: the spectral radius is {float(self.system.spectral_radius().max()):.9g}, and "
                f"{type(self.ref.module).__name__} under {type(self.reducer).__name__} keeps its present poles: they "
                f"cannot be clamped. Use unstable=Unstable.SKIP, or a stable parametrization."
            )
        return clamp_poles(self.system, self.settings.stability_margin)

    def _decide(self, *, reduce: bool) -> Decision:
        if isinstance(self.reducer, ModalTruncation):
            return self._select(self._modal_keep_sets(self.reducer), None, reduce, ())
        fallbacks: list[str] = []
        first: Decision | None = None
        for found in self.gramians.weightings(fallbacks):
            weighting = share(found) if self.ref.adapter.form is Form.SHARED else found
            if isinstance(self.reducer, BalancedSelection):
                rules = self.ref.adapter.selection(self.ref.module)
                sets = BalancedKeepSets(self.system, weighting, self.reducer, rules)
                return self._select(sets, weighting, reduce, tuple(fallbacks))
            values = weighting.spectrum.values
            attempt, unstable = partial(self._reduce, self.reducer, weighting), list[Refusal | None]()
            trials = self._trials(weighting, attempt, unstable)
            choice = self.settings.order_policy().choose(self._spectrum(values), trials)
            last = unstable[-1] if unstable and None not in unstable else None
            if choice is None and last is not None:
                fallbacks.append(f"{_describe(weighting)}: no order that was tried is stable; {last.reason}")
                first = first or Decision(values, weighting, None, None, ())
                continue
            if choice is None or not reduce:
                return Decision(values, weighting, choice, None, tuple(fallbacks))
            result = attempt(choice)
            if isinstance(result, Reduction):
                if result.order >= self.slots:
                    fallbacks.append(f"{result.order} stored states would be needed for {result.real_order}: no gain")
                    return Decision(values, weighting, None, None, tuple(fallbacks))
                result, fitted = self._fitted(weighting, result)
                fallbacks += result.fallbacks
                if isinstance(fitted, NotFitted):
                    fallbacks.append(f"not fitted to the captured inputs: {fitted.reason}")
                    fitted = None
                return Decision(values, weighting, choice, result, tuple(fallbacks), fitted=fitted)
            fallbacks.append(f"{_describe(weighting)}: {result.reason}")
            first = first or Decision(values, weighting, None, None, ())
            if not result.unstable:
                break
        if first is None:
            raise InvalidSystemError(f"{self.ref.label}: no Gramians could be computed: {'; '.join(fallbacks)}")
        return replace(first, fallbacks=(*fallbacks, "not cut"))

    def _spectrum(self, values: Tensor) -> Spectrum:
        if self.settings.batch_order is BatchOrder.POOLED and values.ndim > 1:
            values = values.flatten(0, -2).mean(0)
        return Spectrum(values, self.slots, self.per_slot, self.budget)

    def _reduce(self, reducer: Reducer, weighting: Weighting, choice: OrderChoice) -> Reduction | Refusal:
        if self.ref.adapter.form is Form.SHARED:
            projected = partial(self.ref.adapter.projected, self.ref.module)
            return reduce_shared(self.system, weighting, choice, reducer, self.settings.limits, projected)
        method = reduce_dense if self.ref.adapter.form is Form.DENSE else reduce_diagonal
        return method(self.system, weighting, choice, reducer, self.settings.limits)

    def _fitted(self, weighting: Weighting, reduction: Reduction) -> tuple[Reduction, Fitted | NotFitted | None]:
        """The reduction fitted to the captured inputs, where the reducer asks for it and nothing else was promised."""
        if not (isinstance(self.reducer, BalancedTruncation) and self.reducer.refit):
            return reduction, None
        obstacle = self._obstacle(self.reducer)
        if obstacle is None and weighting.controllability is not GramianSource.DATA:
            obstacle = "its Gramians are not weighted by its inputs"
        return (
            fitted_reduction(self.system, reduction, self.capture)
            if obstacle is None
            else (reduction, NotFitted(obstacle))
        )

    @property
    def may_be_fitted(self) -> bool:
        """Whether a cut is to be fitted to captured inputs, as far as settings and layer say."""
        reducer = self.reducer
        return isinstance(reducer, BalancedTruncation) and reducer.refit and self._obstacle(reducer) is None

    def _obstacle(self, reducer: BalancedTruncation) -> str | None:
        """Why a cut by this reducer is not to be fitted."""
        criterion = self.settings.criterion
        if isinstance(criterion, Tolerance) and criterion.measures_error:
            return f"{type(criterion).__name__} promises an error, which a fit would change"
        if not reducer.has_bound:
            return f"{reducer.keep} is for comparison"
        if self.ref.adapter.form is Form.SHARED:
            return "one similarity is stored for all its systems"
        if self.system.output != "real":
            return "its output is complex"
        return None

    def _trials(
        self,
        weighting: Weighting,
        attempt: Callable[[OrderChoice], Reduction | Refusal],
        unstable: list[Refusal | None],
    ) -> Trials | None:
        """The reductions to try where no theory says what the criterion asks.

        To `unstable` each one adds the refusal that asks for other Gramians, or None.
        """
        criterion = self.settings.criterion
        if not (isinstance(criterion, Tolerance) and criterion.measures_error):
            return None
        if self.has_bound and weighting.is_white:
            return None
        values = self._spectrum(weighting.spectrum.values).values

        def tried(size: int) -> Trial | None:
            states = size * self.per_slot
            result = attempt(OrderChoice(states, size))
            unstable.append(result if isinstance(result, Refusal) and result.unstable else None)
            if not isinstance(result, Reduction) or result.order >= self.slots:
                return None
            return Trial(lambda: tails(values)[..., states], partial(self._within, result.system))

        return Trials(range(1, self.slots), tried)

    def _within(self, reduced: StateSpace, tolerance: float) -> bool:
        """Whether the H-infinity error is at most that; over a finite horizon where there is no other."""
        error = difference(self.system, reduced)
        if not error.is_stable():
            return self.gramians.horizon is not None and horizon_norms(error, self.gramians.horizon).gain <= tolerance
        if hinf_estimate(error) > tolerance:
            return False
        return not self.settings.exact_norms or hinf_norm(error) <= tolerance

    def _require_own_states(self, also_dense: bool = False) -> None:
        """Raise UnsupportedReductionError where states act on each other, unless the layer stores a choice of them."""
        if not (self.system.is_diagonal or also_dense):
            raise UnsupportedReductionError(
                f"{self.ref.label}: {type(self.reducer).__name__} keeps states of a diagonal system, this one is "
                f"dense; use BalancedTruncation."
            )

    def _modal_keep_sets(self, reducer: ModalTruncation) -> ModalKeepSets:
        self._require_own_states()
        self.system.require_stable(self.ref.label)
        return ModalKeepSets(self.system, reducer, self.ref.adapter.selection(self.ref.module))

    def _select(
        self, sets: KeepSets, weighting: Weighting | None, reduce: bool, fallbacks: tuple[str, ...]
    ) -> Decision:
        def tried(size: int) -> Trial:
            lost = partial(self._pooled_sums, sets, size)
            return Trial(lost, lambda tolerance: self._within(sets.reduced(size), tolerance))

        spectrum = self._spectrum(sets.values)
        choice = self.settings.order_policy().choose(spectrum, Trials(sets.sizes, tried))
        size = self.system.order if choice is None else sets.size_within(choice.stored(self.per_slot))
        if size >= self.system.order:
            return Decision(sets.values, weighting, None, None, fallbacks)
        choice = OrderChoice(size * self.per_slot, size, exact=True)
        reduction = sets.reduction(size) if reduce else None
        return Decision(sets.values, weighting, choice, reduction, fallbacks, sets.discarded(size))

    def _pooled_sums(self, sets: KeepSets, size: int) -> Tensor:
        lost = sets.discarded(size)
        return lost.mean() if self.settings.batch_order is BatchOrder.POOLED else lost


def _describe(weighting: Weighting) -> str:
    horizon = "" if weighting.horizon is None else f" over {weighting.horizon} steps"
    return f"{weighting.controllability.value}/{weighting.observability.value} Gramians{horizon}"
