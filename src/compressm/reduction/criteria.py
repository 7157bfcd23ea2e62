"""Rules that choose an order from Hankel singular values. Each rule is a total function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from math import ceil, floor

import torch
from torch import Tensor

from compressm.checks import require_integer, require_kind, require_number
from compressm.errors import InvalidSystemError
from compressm.reduction.trials import Trial, Trials


@dataclass(frozen=True)
class Budget:
    """What a layer may discard over a whole run: the sum `total` of its first spectrum, and the sum `spent` so far."""

    total: float
    spent: float = 0.0


@dataclass(frozen=True)
class Spectrum:
    """What a rule sees of one layer.

    `values` are the Hankel singular values sigma_1 >= sigma_2 >= ... of the system that is balanced; a stored complex
    state of a layer with real output counts `states_per_slot` = 2 of them. For a bank of systems that share one order
    they are `(*h, k)`, those of each, and a rule gives the order of the system that needs most. `order` is the present
    number of stored states. `budget` refers to the uncompressed layer, where it is known.
    """

    values: Tensor
    order: int
    states_per_slot: int = 1
    budget: Budget | None = None


@dataclass(frozen=True)
class OrderChoice:
    """At most `states` balanced states, to be stored in at most `slots` stored states, or exactly that many."""

    states: int
    slots: int
    exact: bool = False

    def stored(self, states_per_slot: int) -> int:
        """The number of stored states, at least one, where each holds `states_per_slot` balanced ones."""
        return max(min(self.slots, ceil(self.states / states_per_slot)), 1)


_ROUNDING = 1e-12  # 0.29 of 100 states are 29, though 0.29 * 100 is below 29 in floating point


class Criterion(ABC):
    """A rule from Hankel singular values to an order."""

    @abstractmethod
    def choose(self, spectrum: Spectrum) -> OrderChoice:
        """The order this rule wants; never more than the present one."""


class Tolerance(Criterion):
    """A rule that allows a loss. Where no theory foretells the loss of a reduction, it is tried and measured."""

    measures_error: bool = (
        False  # whether the loss is |G - G_r|_inf, which only classical balanced truncation foretells
    )

    @abstractmethod
    def admits(self, spectrum: Spectrum, trial: Trial) -> bool:
        """Whether a reduction of the layer loses no more than is allowed."""

    def least_states(self, spectrum: Spectrum) -> int:
        """A number of states below which it is known, without trying, that no reduction is admitted."""
        del spectrum
        return 0


class Reference(Enum):
    """Which spectrum a relative tolerance is a fraction of."""

    CURRENT = "current"  # the spectrum at the attempt (the paper); the tolerance ratchets with the number of cuts
    INITIAL = "initial"  # the first spectrum of the layer: a budget for the whole run, which every cut draws on


def significant_values(values: Tensor) -> Tensor:
    """The values `(*h, k)` with everything below n * eps * sigma_1 counted as zero; raises on NaN."""
    if not bool(torch.isfinite(values).all()):
        raise InvalidSystemError("Hankel singular values are not finite; the system they belong to is not sound.")
    values = values.double()
    if values.numel() == 0:
        return values
    threshold = values.shape[-1] * torch.finfo(torch.float64).eps * values.amax(-1, keepdim=True)
    return torch.where(values > threshold, values, torch.zeros_like(values))


def tails(values: Tensor) -> Tensor:
    """tail(k) = sum of sigma_i for i > k, for k = 0 .. n, `(*h, n + 1)`."""
    kept = significant_values(values)
    return torch.cat([kept.flip(-1).cumsum(-1).flip(-1), kept.new_zeros(*kept.shape[:-1], 1)], -1)


def order_within(values: Tensor, allowed: Tensor | float) -> int:
    """The smallest order whose tail is at most `allowed`: #{k in 0 .. n-1 : tail(k) > allowed}.

    For a bank, with `allowed` `(*h,)` or one number, the largest such order of its systems.
    """
    allowed = torch.as_tensor(allowed, dtype=torch.float64)
    orders = orders_within(values, allowed)
    return int(orders.max()) if orders.numel() else 0


def orders_within(values: Tensor, allowed: Tensor) -> Tensor:
    """`order_within` of each system of a bank, `(*h,)`."""
    return (tails(values)[..., :-1] > allowed.unsqueeze(-1)).sum(-1)


@dataclass(frozen=True)
class HankelEnergy(Tolerance):
    """Discard at most the fraction `discard` of the sum of the values (Chahine et al. 2026, eq. 8), not of squares.

    What balanced truncation discards is the tail. What a choice among the present states discards is measured: see
    `KeepSets.discarded`, which is never less than the tail at its order.
    """

    discard: float = 0.02
    reference: Reference = Reference.CURRENT

    def __post_init__(self) -> None:
        _require_fraction("HankelEnergy.discard", self.discard)
        require_kind("HankelEnergy.reference", self.reference, Reference)

    def choose(self, spectrum: Spectrum) -> OrderChoice:
        """The smallest order with tail(r) <= discard * sum, or what is left of the budget, shared as the sums are."""
        return OrderChoice(order_within(spectrum.values, self._allowed(spectrum)), spectrum.order)

    def admits(self, spectrum: Spectrum, trial: Trial) -> bool:
        """Whether no system discards more than its share."""
        allowed = self._allowed(spectrum)
        return bool((trial.discarded() <= allowed * (1 + _ROUNDING)).all())

    def least_states(self, spectrum: Spectrum) -> int:
        """That of balanced truncation: nothing discards less than the tail."""
        return order_within(spectrum.values, self._allowed(spectrum) * (1 + _ROUNDING))

    def _allowed(self, spectrum: Spectrum) -> Tensor:
        sums = tails(spectrum.values)[..., 0]
        if self.reference is Reference.CURRENT or spectrum.budget is None:
            return self.discard * sums
        left = max(self.discard * spectrum.budget.total - spectrum.budget.spent, 0.0)
        whole = float(sums.mean())
        return sums / whole * left if whole > 0 else sums


@dataclass(frozen=True)
class ErrorBound(Tolerance):
    """The smallest order whose bound 2 * tail(r) on the H-infinity error is at most `tolerance` (a gain, absolute).

    The bound is that of balanced truncation under classical Gramians. Where it does not hold (Gramians from data or of
    a finite horizon, one projection for many systems, a choice among the present states) the error of reductions is
    measured instead, and the order is the smallest found whose error is at most `tolerance`.
    """

    tolerance: float
    measures_error = True

    def __post_init__(self) -> None:
        require_number("ErrorBound.tolerance", self.tolerance, 0, wanted="a gain of 0 or more")

    def choose(self, spectrum: Spectrum) -> OrderChoice:
        """The smallest order with 2 * tail(r) <= tolerance."""
        return OrderChoice(order_within(spectrum.values, self.tolerance / 2), spectrum.order)

    def admits(self, spectrum: Spectrum, trial: Trial) -> bool:
        """Whether the measured error is at most `tolerance`."""
        return trial.within(self.tolerance)


@dataclass(frozen=True)
class FixedOrder(Criterion):
    """At most `order` stored states; no change where the layer has no more."""

    order: int

    def __post_init__(self) -> None:
        require_integer("FixedOrder.order", self.order, 1)

    def choose(self, spectrum: Spectrum) -> OrderChoice:
        """The given order, or the present one where that is smaller."""
        slots = min(self.order, spectrum.order)
        return OrderChoice(slots * spectrum.states_per_slot, slots)


@dataclass(frozen=True)
class FixedFraction(Criterion):
    """Drop the fraction `drop` of the present stored states, rounded towards keeping them."""

    drop: float = 0.25

    def __post_init__(self) -> None:
        _require_fraction("FixedFraction.drop", self.drop)

    def choose(self, spectrum: Spectrum) -> OrderChoice:
        """n - floor(drop * n) stored states."""
        slots = spectrum.order - floor(self.drop * spectrum.order * (1 + _ROUNDING))
        return OrderChoice(slots * spectrum.states_per_slot, slots)


@dataclass(frozen=True)
class OrderPolicy:
    """A criterion with the practical limits around it.

    `multiple` rounds the stored order up to a multiple (kernels often want 8 or 16); `floor` is the smallest stored
    order; a cut that would remove less than the fraction `minimum_gain` of the stored states is not made (the
    paper's gate is 0.05).
    """

    criterion: Criterion
    multiple: int = 1
    minimum_gain: float = 0.0
    floor: int = 1

    def __post_init__(self) -> None:
        require_integer("multiple", self.multiple, 1)
        require_integer("floor", self.floor, 1)
        _require_fraction("minimum_gain", self.minimum_gain)

    def choose(self, spectrum: Spectrum, trials: Trials | None = None) -> OrderChoice | None:
        """The order to reduce to, or None where the layer stays as it is.

        With `trials` a rule that allows a loss takes the smallest order at which it does not lose more.
        """
        n, per, rule = spectrum.order, spectrum.states_per_slot, self.criterion
        if trials is not None and isinstance(rule, Tolerance):
            least = ceil(rule.least_states(spectrum) / per)
            size = trials.smallest(lambda trial: rule.admits(spectrum, trial), least)
            choice = OrderChoice(n * per, n) if size is None else OrderChoice(size * per, size)
        else:
            choice = rule.choose(spectrum)
        wanted = ceil(choice.states / per)
        slots = ceil(max(wanted, self.floor) / self.multiple) * self.multiple
        if slots >= n or n - slots < self.minimum_gain * n * (1 - _ROUNDING):
            return None
        if slots > wanted or self.multiple > 1:  # room was added: use it, and neither leave any nor go beyond it
            return OrderChoice(slots * per, slots, exact=True)
        return OrderChoice(choice.states, min(choice.slots, n))


def _require_fraction(name: str, value: float) -> None:
    require_number(name, value, 0, 1, wanted="a fraction between 0 and 1")
