from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressm.errors import ConfigError, InvalidSystemError
from compressm.reduction.criteria import (
    Budget,
    ErrorBound,
    FixedFraction,
    FixedOrder,
    HankelEnergy,
    OrderChoice,
    OrderPolicy,
    Reference,
    Spectrum,
    order_within,
    significant_values,
    tails,
)

EPS = torch.finfo(torch.float64).eps
SPECTRA = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)
FRACTIONS = st.floats(0, 1)


def spectrum(values: list[float], order: int | None = None, per: int = 1, budget: Budget | None = None) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), order or len(values) // per, per, budget)


def test_energy_is_of_the_sum_not_of_the_squares() -> None:
    values = [8.0, 1.0, 0.6, 0.4]
    assert HankelEnergy(0.1).choose(spectrum(values)).states == 2
    assert HankelEnergy(0.0999).choose(spectrum(values)).states == 3
    assert HankelEnergy(0.0).choose(spectrum(values)).states == 4
    assert HankelEnergy(1.0).choose(spectrum(values)).states == 0


@settings(max_examples=200)
@given(SPECTRA, FRACTIONS)
def test_energy_is_the_smallest_order_that_is_allowed(values: torch.Tensor, discard: float) -> None:
    states = HankelEnergy(discard).choose(Spectrum(values, len(values))).states
    tail = tails(values)
    assert float(tail[states]) <= discard * float(tail[0])
    if states > 0:
        assert float(tail[states - 1]) > discard * float(tail[0])


@settings(max_examples=200)
@given(SPECTRA, FRACTIONS, FRACTIONS)
def test_more_tolerance_never_gives_a_larger_order(values: torch.Tensor, first: float, second: float) -> None:
    low, high = sorted((first, second))
    whole = float(values.sum())
    case = Spectrum(values, len(values))
    assert HankelEnergy(high).choose(case).states <= HankelEnergy(low).choose(case).states
    assert ErrorBound(high * whole).choose(case).states <= ErrorBound(low * whole).choose(case).states
    assert FixedFraction(high).choose(case).slots <= FixedFraction(low).choose(case).slots
    assert order_within(values, high * whole) <= order_within(values, low * whole)


@settings(max_examples=100)
@given(SPECTRA)
def test_no_tolerance_gives_the_numerical_rank(values: torch.Tensor) -> None:
    """Never order 1 by accident, as an argmax over nothing would give."""
    rank = int((significant_values(values) > 0).sum())
    assert HankelEnergy(0.0).choose(Spectrum(values, len(values))).states == rank
    assert ErrorBound(0.0).choose(Spectrum(values, len(values))).states == rank
    assert HankelEnergy(1.0).choose(Spectrum(values, len(values))).states == 0


def test_equal_values_and_tiny_tolerances() -> None:
    values = [0.1] * 10  # their cumulative sum never is 1 exactly
    assert HankelEnergy(0.0).choose(spectrum(values)).states == 10
    assert HankelEnergy(1e-18).choose(spectrum(values)).states == 10
    assert HankelEnergy(1.0).choose(spectrum(values)).states == 0
    assert HankelEnergy(0.1 + 1e-12).choose(spectrum(values)).states == 9


@pytest.mark.parametrize("criterion", [HankelEnergy(0.02), HankelEnergy(0.0), ErrorBound(0.1), ErrorBound(0.0)])
def test_an_all_zero_spectrum_needs_no_state(criterion) -> None:
    assert criterion.choose(spectrum([0.0] * 5)).states == 0
    assert OrderPolicy(criterion).choose(spectrum([0.0] * 5)) == OrderChoice(1, 1, exact=True)
    assert OrderPolicy(criterion).choose(spectrum([0.0])) is None


def test_values_below_round_off_count_as_zero() -> None:
    values = [1.0, 0.5, 3.9 * EPS, 1e-30]
    assert torch.equal(significant_values(torch.tensor(values).double()), torch.tensor([1.0, 0.5, 0, 0]).double())
    assert HankelEnergy(0.0).choose(spectrum(values)).states == 2
    assert significant_values(torch.zeros(0)).numel() == 0
    assert torch.equal(tails(torch.tensor([3.0, 2.0, 1.0])), torch.tensor([6.0, 3.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("criterion", [HankelEnergy(0.1), ErrorBound(1.0)])
def test_values_that_are_not_finite_raise(bad: float, criterion) -> None:
    with pytest.raises(InvalidSystemError, match="not finite"):
        criterion.choose(spectrum([1.0, bad]))


def test_the_initial_spectrum_is_a_budget_for_the_run() -> None:
    """After a cut the same fraction of what is left would go again; a budget is drawn upon once."""
    first = [10.0, 1.0, 0.5, 0.1]
    total = 11.6
    current, initial = HankelEnergy(0.06), HankelEnergy(0.06, Reference.INITIAL)
    assert current.choose(spectrum(first)).states == 2
    assert initial.choose(spectrum(first, budget=Budget(total))).states == 2
    later = [5.0, 0.5]
    assert current.choose(spectrum(later, budget=Budget(total))).states == 2
    assert initial.choose(spectrum(later, budget=Budget(total))).states == 1  # 0.5 <= 0.06 * 11.6
    assert initial.choose(spectrum(later, budget=Budget(total, spent=0.3))).states == 2
    assert initial.choose(spectrum(later, budget=Budget(total, spent=99.0))).states == 2
    assert initial.choose(spectrum(later)).states == 2  # not known yet: the present one


def test_error_bound_is_twice_the_tail() -> None:
    values = [4.0, 2.0, 1.0, 0.5]
    assert ErrorBound(3.0).choose(spectrum(values)).states == 2
    assert ErrorBound(2.99).choose(spectrum(values)).states == 3
    assert ErrorBound(15.0).choose(spectrum(values)).states == 0


def test_fixed_order_and_fraction_count_stored_states() -> None:
    case = spectrum([1.0] * 20, order=10, per=2)
    assert FixedOrder(4).choose(case) == OrderChoice(8, 4)
    assert FixedOrder(99).choose(case) == OrderChoice(20, 10)
    assert FixedFraction(0.25).choose(case) == OrderChoice(16, 8)
    assert FixedFraction(0.0).choose(case) == OrderChoice(20, 10)
    assert FixedFraction(1.0).choose(case).slots == 0


@pytest.mark.parametrize(("drop", "order", "left"), [(0.29, 100, 71), (0.57, 100, 43), (0.1, 10, 9), (1 / 3, 3, 2)])
def test_a_fraction_is_not_spoilt_by_floating_point(drop: float, order: int, left: int) -> None:
    """0.29 * 100 is 28.999999999999996."""
    assert FixedFraction(drop).choose(spectrum([1.0] * order)).slots == left


def test_policy_counts_pairs_as_one_stored_state() -> None:
    values = [1.0] * 5 + [0.0] * 15
    assert OrderPolicy(HankelEnergy(0.0)).choose(spectrum(values, order=10, per=2)) == OrderChoice(5, 10)


def test_policy_rounds_up_to_multiples() -> None:
    case = spectrum([1.0] * 11 + [0.0] * 29)
    assert OrderPolicy(HankelEnergy(0.0), multiple=8).choose(case) == OrderChoice(16, 16, exact=True)
    assert OrderPolicy(HankelEnergy(0.0), multiple=11).choose(case) == OrderChoice(11, 11, exact=True)
    assert OrderPolicy(HankelEnergy(0.0), multiple=64).choose(case) is None
    pairs = spectrum([1.0] * 11 + [0.0] * 29, order=20, per=2)
    assert OrderPolicy(HankelEnergy(0.0), multiple=8).choose(pairs) == OrderChoice(16, 8, exact=True)


def test_policy_floor() -> None:
    case = spectrum([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert OrderPolicy(HankelEnergy(0.0), floor=4).choose(case) == OrderChoice(4, 4, exact=True)
    assert OrderPolicy(HankelEnergy(0.0), floor=6).choose(case) is None
    assert OrderPolicy(HankelEnergy(0.0), floor=7).choose(case) is None
    assert OrderPolicy(HankelEnergy(0.0), floor=1).choose(case) == OrderChoice(1, 6)
    assert OrderPolicy(FixedOrder(2), floor=3).choose(case) == OrderChoice(3, 3, exact=True)
    assert OrderPolicy(FixedFraction(1.0)).choose(case) == OrderChoice(1, 1, exact=True)


@pytest.mark.parametrize(
    ("removed", "order", "gain", "cut"),
    [(1, 20, 0.05, True), (1, 21, 0.05, False), (0, 20, 0.0, False), (9, 10, 0.9, True), (7, 100, 0.07, True)],
)
def test_policy_gate(removed: int, order: int, gain: float, cut: bool) -> None:
    case = spectrum([1.0] * (order - removed) + [0.0] * removed)
    assert (OrderPolicy(HankelEnergy(0.0), minimum_gain=gain).choose(case) is not None) is cut


@settings(max_examples=200)
@given(
    SPECTRA,
    st.sampled_from((1, 2)),
    st.builds(
        OrderPolicy,
        st.builds(HankelEnergy, FRACTIONS)
        | st.builds(FixedOrder, st.integers(1, 50))
        | st.builds(FixedFraction, FRACTIONS),
        multiple=st.integers(1, 9),
        minimum_gain=FRACTIONS,
        floor=st.integers(1, 9),
    ),
)
def test_policy_is_total_and_keeps_its_limits(values: torch.Tensor, per: int, policy: OrderPolicy) -> None:
    order = math.ceil(len(values) / per)
    choice = policy.choose(Spectrum(values, order, per))
    if choice is None:
        return
    stored = math.ceil(choice.states / per)
    assert 1 <= stored <= choice.slots <= order
    assert stored < order
    assert stored >= min(policy.floor, order)
    assert order - stored >= policy.minimum_gain * order * (1 - 1e-9)
    if policy.multiple > 1:
        assert choice.exact
        assert choice.slots % policy.multiple == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: HankelEnergy(-0.1),
        lambda: HankelEnergy(1.1),
        lambda: HankelEnergy(math.nan),
        lambda: ErrorBound(-1.0),
        lambda: ErrorBound(math.inf),
        lambda: FixedOrder(0),
        lambda: FixedFraction(2.0),
        lambda: FixedOrder(True),
        lambda: FixedOrder(2.5),  # type: ignore[arg-type]
        lambda: OrderPolicy(FixedOrder(1), multiple=2.5),  # type: ignore[arg-type]
        lambda: OrderPolicy(FixedOrder(1), multiple=0),
        lambda: OrderPolicy(FixedOrder(1), floor=0),
        lambda: OrderPolicy(FixedOrder(1), minimum_gain=-0.1),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(ConfigError, match=r"wanted|must be"):
        make()
