"""The analysis of one layer: its system, the Gramians that are wanted or left to fall back on, and the order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from compressm.adapters.base import Form
from compressm.adapters.calibration import Capture
from compressm.adapters.holding import in_double, reference_tensor
from compressm.adapters.moments import (
    MomentSum,
    controllability_moments,
    controllability_sum,
    observability_moments,
    observability_sum,
)
from compressm.adapters.registry import LayerRef
from compressm.errors import (
    AdapterError,
    CompressmError,
    InvalidSystemError,
    UnstableSystemError,
    UnsupportedReductionError,
)
from compressm.linalg.clamping import Clamped, clamp_poles
from compressm.linalg.forms import Frame, states_per_slot
from compressm.linalg.gramians import GramianFactors, controllability_factor, dual, moment_factor, white_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.horizon import horizon_norms
from compressm.linalg.norms import difference, error_bound, hinf_estimate, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import Budget, OrderChoice, Spectrum, Tolerance, significant_values, tails
from compressm.reduction.keeping import BalancedKeepSets, BalancedSelection, KeepSets, ModalKeepSets
from compressm.reduction.reduce import reduce_dense, reduce_diagonal, require_feedthrough
from compressm.reduction.reducers import Reducer
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.selection import ModalTruncation
from compressm.reduction.shared import reduce_shared, share
from compressm.reduction.trials import Trial, Trials
from compressm.reduction.weighting import Refusal, Weighting
from compressm.settings import BatchOrder, CompressionSettings, Unstable

_ON_THE_CIRCLE = 1e-12  # |pole| - 1 that rounding in double precision may leave of an undamped oscillation
_UNDAMPED_HORIZON = 1024  # steps, where nothing was captured
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What became of one layer: the values that decided, the choice, and the reduction if any.

    `values` are Hankel singular values, or the scores of a modal truncation; `(*h, k)` for a bank of systems.
    `discarded` is what a choice among the present states loses of their sum, `(*h,)`; None where that is the tail.
    """

    values: Tensor
    weighting: Weighting | None
    choice: OrderChoice | None
    reduction: Reduction | None
    fallbacks: tuple[str, ...]
    discarded: Tensor | None = None


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
        if isinstance(self.reducer, BalancedSelection) and self.system.output == "real":
            self.frame = Frame.REAL
        self._clamped: Clamped | None = None
        if settings.unstable is Unstable.CLAMP and not (self.system.is_stable() or is_undamped(self.system)):
            self._clamped = self._clamp()
            self.system = self._clamped.system

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
        for weighting in self._weightings(fallbacks):
            if isinstance(self.reducer, BalancedSelection):
                rules = self.ref.adapter.selection(self.ref.module)
                sets = BalancedKeepSets(self.system, weighting, self.reducer, rules)
                return self._select(sets, weighting, reduce, tuple(fallbacks))
            values = weighting.spectrum.values
            attempt = partial(self._reduce, self.reducer, weighting)
            choice = self.settings.order_policy().choose(self._spectrum(values), self._trials(weighting, attempt))
            if choice is None or not reduce:
                return Decision(values, weighting, choice, None, tuple(fallbacks))
            result = attempt(choice)
            if isinstance(result, Reduction):
                if result.order >= self.slots:
                    fallbacks.append(f"{result.order} stored states would be needed for {result.real_order}: no gain")
                    return Decision(values, weighting, None, None, tuple(fallbacks))
                return Decision(values, weighting, choice, result, (*fallbacks, *result.fallbacks))
            fallbacks.append(f"{_describe(weighting)}: {result.reason}")
            first = first or Decision(values, weighting, None, None, ())
            if not result.unstable:
                break
        if first is None:
            raise InvalidSystemError(f"{self.ref.label}: no Gramians could be computed: {'; '.join(fallbacks)}")
        return replace(first, fallbacks=(*fallbacks, "not cut"))

    def moment_sums(self, tokens: tuple[int, int]) -> tuple[MomentSum | None, MomentSum | None]:
        """The sums behind the Gramians from data that the settings ask for, of this process's own captures.

        `tokens` are the positions of inputs and of gradients that all processes captured.
        """
        p = q = None
        if self.settings.controllability is GramianSource.DATA:
            p = controllability_sum(self._balanced, self.capture, self.frame, tokens[0])
        if self.settings.observability is GramianSource.LOSS:
            q = observability_sum(self._balanced, self.capture, self.frame, tokens[1])
        return p, q

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

    def _trials(self, weighting: Weighting, attempt: Callable[[OrderChoice], Reduction | Refusal]) -> Trials | None:
        """The reductions to try where no theory says what the criterion asks."""
        criterion = self.settings.criterion
        if not (isinstance(criterion, Tolerance) and criterion.measures_error):
            return None
        if self.has_bound and weighting.is_white:
            return None
        values = self._spectrum(weighting.spectrum.values).values

        def tried(size: int) -> Trial | None:
            states = size * self.per_slot
            result = attempt(OrderChoice(states, size))
            if not isinstance(result, Reduction) or result.order >= self.slots:
                return None
            return Trial(lambda: tails(values)[..., states], partial(self._within, result))

        return Trials(range(1, self.slots), tried)

    def _within(self, reduction: Reduction, tolerance: float) -> bool:
        """Whether the H-infinity error is at most that; over a finite horizon where there is no other."""
        error = difference(self.system, reduction.system)
        if not error.is_stable():
            return self._horizon is not None and horizon_norms(error, self._horizon).gain <= tolerance
        if hinf_estimate(error) > tolerance:
            return False
        return not self.settings.exact_norms or hinf_norm(error) <= tolerance

    def _modal_keep_sets(self, reducer: ModalTruncation) -> ModalKeepSets:
        if not self.system.is_diagonal:
            raise UnsupportedReductionError(
                f"{self.ref.label}: ModalTruncation keeps states of a diagonal system, this one is dense; use "
                f"BalancedTruncation."
            )
        self.system.require_stable(self.ref.label)
        return ModalKeepSets(self.system, reducer, self.ref.adapter.selection(self.ref.module))

    def _select(
        self, sets: KeepSets, weighting: Weighting | None, reduce: bool, fallbacks: tuple[str, ...]
    ) -> Decision:
        def tried(size: int) -> Trial:
            lost = partial(self._pooled_sums, sets, size)
            return Trial(lost, lambda tolerance: self._within(sets.reduction(size), tolerance))

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

    def _weightings(self, fallbacks: list[str]) -> Iterator[Weighting]:
        for controllability, observability, horizon in self._candidates():
            white = GramianSource.WHITE in (controllability, observability)
            if white and horizon is None:
                self.system.require_stable(self.ref.label)
            if controllability is observability is GramianSource.WHITE:
                factors = white_factors(self._balanced, self.frame, horizon)
            else:
                p = self._data_factor if controllability is GramianSource.DATA else self._white(self._balanced, horizon)
                if p is None:
                    fallbacks.append(f"{controllability.value}/{observability.value} Gramians: no inputs were captured")
                    continue
                loss = observability is GramianSource.LOSS
                q = self._loss_factor if loss else self._white(dual(self._balanced), horizon)
                if q is None:
                    fallbacks.append(
                        f"{controllability.value}/{observability.value} Gramians: no gradients were captured"
                    )
                    continue
                factors = GramianFactors(p, q, self.frame)
            used = horizon if white else None
            weighting = Weighting(factors, hankel_spectrum(factors), controllability, observability, used)
            yield share(weighting) if self.ref.adapter.form is Form.SHARED else weighting

    def _candidates(self) -> list[tuple[GramianSource, GramianSource, int | None]]:
        wanted, white, horizon = self.settings, GramianSource.WHITE, self._horizon
        options = [
            (wanted.controllability, wanted.observability, horizon),
            (wanted.controllability, white, horizon),
            (white, white, horizon),
            (white, white, None),
        ]
        if horizon is not None and not self.system.is_stable():
            options = options[:3]
        return list(dict.fromkeys(options))

    @cached_property
    def _horizon(self) -> int | None:
        """The steps of finite-horizon Gramians: as set, or for a layer without any damping those of what it sees."""
        if self.settings.horizon is not None or not is_undamped(self.system):
            return self.settings.horizon
        seen = (*self.capture.inputs, *self.capture.gradients)
        return max((values.shape[1] for values, _ in seen), default=_UNDAMPED_HORIZON)

    def _white(self, system: StateSpace, horizon: int | None) -> Tensor:
        return controllability_factor(system, self.frame, horizon)

    @cached_property
    def _balanced(self) -> StateSpace:
        return self.reducer.balanced_system(self.system) if isinstance(self.reducer, Reducer) else self.system

    @cached_property
    def _data_factor(self) -> Tensor | None:
        return self._factor(controllability_moments(self._balanced, self.capture, self.frame))

    @cached_property
    def _loss_factor(self) -> Tensor | None:
        return self._factor(observability_moments(self._balanced, self.capture, self.frame))

    def _factor(self, moments: Tensor | None) -> Tensor | None:
        if moments is None:
            return None
        if not bool(torch.isfinite(moments).all()):
            self.system.require_stable(self.ref.label)
            raise InvalidSystemError(
                f"{self.ref.label}: the states overflow on the captured passes; scale weights or inputs down."
            )
        return moment_factor(moments)


def is_undamped(system: StateSpace) -> bool:
    """Whether the largest poles lie on the unit circle, to within rounding: infinite-horizon Gramians do not exist."""
    if system.is_stable():
        return False
    if system.log_a is not None:
        return bool((system.log_a.real <= _ON_THE_CIRCLE).all())
    return bool((system.spectral_radius() <= 1 + _ON_THE_CIRCLE).all())


def read_system(ref: LayerRef) -> StateSpace:
    """The layer's system in double precision, verified against the layer's own forward pass.

    Raises AdapterError where the adapter misreads the layer, InvalidSystemError, naming the layer, for bad values.
    """
    try:
        system = ref.adapter.read(ref.module).to_double()
    except InvalidSystemError as error:
        raise InvalidSystemError(f"{ref.label}: {error}") from error
    except AttributeError as error:
        raise AdapterError(
            f"{ref.label}: {type(ref.adapter).__name__} cannot read {type(ref.module).__name__}: {error}."
        ) from error
    verify_realization(ref, system)
    return system


def verify_realization(ref: LayerRef, system: StateSpace, length: int = 8) -> None:
    """Raise AdapterError unless the layer's forward pass is the system that was read, on a short random input."""
    like = reference_tensor(ref.module)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, length, system.input_features, generator=generator, dtype=torch.float64)
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        try:
            found = in_double(ref.adapter.response(ref.module, u.to(like.device, like.dtype)))
        except CompressmError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise AdapterError(
                f"{ref.label}: the forward pass failed on an input of shape {tuple(u.shape)}: {error}"
            ) from error
    wanted = system.simulate(u.to(like.dtype).double())
    tolerance = min(100 * torch.finfo(like.dtype).eps ** 0.75, 0.1)  # a wrong factor or sign changes more than this
    size = float(wanted.abs().max())
    error = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    if not error <= tolerance * max(size, 1e-30):
        raise AdapterError(
            f"{ref.label}: {type(ref.adapter).__name__} read a system whose output differs from that of "
            f"{type(ref.module).__name__}'s own forward pass by {error:.1e} (the output's size is {size:.1e}). The "
            f"layer has an option that the adapter does not know, or only shares its name. Nothing was cut. Register "
            f"an adapter for {type(ref.module).__module__}.{type(ref.module).__qualname__}, or leave it alone with "
            f"adapters={{{type(ref.module).__name__}: None}}."
        )


def significant_tail(values: Tensor, states: Tensor | int) -> tuple[float, float]:
    """The discarded fraction of the sum of the values beyond `states`, and the bound 2 * tail.

    For a bank, `values` `(*h, k)` and `states` `(*h,)` or one number: the fraction of the sum over all systems, and the
    largest bound of any, which is the bound of the bank.
    """
    kept = significant_values(values)
    beyond = torch.arange(values.shape[-1]) >= torch.as_tensor(states).unsqueeze(-1)
    total = float(kept.sum())
    return (float((kept * beyond).sum()) / total if total > 0 else 0.0), error_bound(values, states)


def _describe(weighting: Weighting) -> str:
    horizon = "" if weighting.horizon is None else f" over {weighting.horizon} steps"
    return f"{weighting.controllability.value}/{weighting.observability.value} Gramians{horizon}"
