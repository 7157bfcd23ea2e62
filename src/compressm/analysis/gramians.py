"""The Gramians of one layer's system that its settings ask for, and those to fall back on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor

from compressm.adapters.calibration import Capture
from compressm.adapters.moments import (
    Extent,
    MomentSum,
    Passes,
    controllability_moments,
    controllability_sum,
    observability_moments,
    observability_sum,
)
from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import GramianFactors, controllability_factor, dual, moment_factor, white_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.parallel import side_by_side
from compressm.linalg.statespace import StateSpace
from compressm.reduction.keeping import BalancedSelection
from compressm.reduction.reducers import Reducer
from compressm.reduction.result import GramianSource
from compressm.reduction.selection import ModalTruncation
from compressm.reduction.weighting import Weighting
from compressm.settings import CompressionSettings

_ON_THE_CIRCLE = 1e-12  # |pole| - 1 that rounding in double precision may leave of an undamped oscillation
_UNDAMPED_HORIZON = 1024  # steps, where nothing was captured


class LayerGramians:
    """The Gramians of `system` in `frame`, from what the layer named `label` has captured or under white input.

    `reducer` says which system is balanced, where it is one that balances.
    """

    def __init__(
        self,
        label: str,
        system: StateSpace,
        frame: Frame,
        capture: Capture,
        settings: CompressionSettings,
        reducer: Reducer | BalancedSelection | ModalTruncation,
    ) -> None:
        self.system, self.frame, self.capture = system, frame, capture
        self._label, self._settings, self._reducer = label, settings, reducer
        self._measured: dict[GramianSource, Tensor | None] = {}

    def weightings(self, fallbacks: list[str]) -> Iterator[Weighting]:
        """Those asked for, then the next ones; why some could not be had is added to `fallbacks`."""
        for controllability, observability, horizon in self._candidates():
            white = GramianSource.WHITE in (controllability, observability)
            if white and horizon is None:
                self.system.require_stable(self._label)
            if controllability is observability is GramianSource.WHITE:
                factors = white_factors(self._balanced, self.frame, horizon)
            else:
                p, q = self._factors(controllability, observability, horizon)
                asked = f"{controllability.value}/{observability.value} Gramians"
                if p is None:
                    fallbacks.append(f"{asked}: {self._nothing('inputs', self.capture.inputs)}")
                    continue
                if q is None:
                    fallbacks.append(f"{asked}: {self._nothing('gradients', self.capture.gradients)}")
                    continue
                factors = GramianFactors(p, q, self.frame)
            used = horizon if white else None
            spectrum = hankel_spectrum(factors, vectors=isinstance(self._reducer, Reducer))
            yield Weighting(factors, spectrum, controllability, observability, used)

    def moment_sums(self, extents: tuple[Extent, Extent]) -> tuple[MomentSum | None, MomentSum | None]:
        """The sums behind the Gramians from data that the settings ask for, of this process's own captures.

        `extents` are those of the inputs and of the gradients that all processes captured.
        """
        p = q = None
        if self._settings.controllability is GramianSource.DATA:
            p = controllability_sum(self._balanced, self.capture, self.frame, extents[0])
        if self._settings.observability is GramianSource.LOSS:
            q = observability_sum(self._balanced, self.capture, self.frame, extents[1])
        return p, q

    @cached_property
    def horizon(self) -> int | None:
        """The steps of finite-horizon Gramians: as set, or for a layer without any damping those of what it sees."""
        if self._settings.horizon is not None or not is_undamped(self.system):
            return self._settings.horizon
        seen = (*self.capture.inputs, *self.capture.gradients)
        return max((values.shape[1] for values, _ in seen), default=0) or _UNDAMPED_HORIZON

    def _candidates(self) -> list[tuple[GramianSource, GramianSource, int | None]]:
        wanted, white, horizon = self._settings, GramianSource.WHITE, self.horizon
        options = [
            (wanted.controllability, wanted.observability, horizon),
            (wanted.controllability, white, horizon),
            (white, white, horizon),
            (white, white, None),
        ]
        if horizon is not None and not self.system.is_stable():
            options = options[:3]
        return list(dict.fromkeys(options))

    def _nothing(self, what: str, passes: Passes) -> str:
        """Why there are no Gramians of the captured `what`."""
        extent = Extent.of(passes)
        if not passes:
            return f"no {what} were captured, or none without NaN and infinite values"
        if extent.positions == 0:
            return f"the {what} captured have no time steps"
        if extent.shortest == 0:
            return f"all positions of the {what} captured are padding"
        return f"the {what} captured are all zero" + " at a system of the bank" * bool(self.system.batch_shape)

    @cached_property
    def _balanced(self) -> StateSpace:
        return self._reducer.balanced_system(self.system) if isinstance(self._reducer, Reducer) else self.system

    def _factors(
        self, controllability: GramianSource, observability: GramianSource, horizon: int | None
    ) -> list[Tensor | None]:
        """The factors of both Gramians, found side by side; None where nothing was captured."""
        system = self._balanced
        pairs = (controllability, system), (observability, dual(system))
        return side_by_side([partial(self._factor_of, source, one, horizon) for source, one in pairs])

    def _factor_of(self, source: GramianSource, system: StateSpace, horizon: int | None) -> Tensor | None:
        if source is GramianSource.WHITE:
            return controllability_factor(system, self.frame, horizon)
        if source not in self._measured:
            moments = controllability_moments if source is GramianSource.DATA else observability_moments
            self._measured[source] = self._factor(moments(self._balanced, self.capture, self.frame))
        return self._measured[source]

    def _factor(self, moments: Tensor | None) -> Tensor | None:
        if moments is None:
            return None
        if not bool(torch.isfinite(moments).all()):
            self.system.require_stable(self._label)
            raise InvalidSystemError(
                f"{self._label}: the states overflow on the captured passes; scale weights or inputs down."
            )
        return moment_factor(moments)


def is_undamped(system: StateSpace) -> bool:
    """Whether the largest poles lie on the unit circle, to within rounding: infinite-horizon Gramians do not exist."""
    if system.is_stable():
        return False
    if system.log_a is not None:
        return bool((system.log_a.real <= _ON_THE_CIRCLE).all())
    return bool((system.spectral_radius() <= 1 + _ON_THE_CIRCLE).all())
