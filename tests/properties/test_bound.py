"""sigma_{r+1} <= |G - G_r|_inf <= 2 * (sigma_{r+1} + ... + sigma_n), over 2,000 generated systems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import BalancingMethod, numerical_rank
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.gramians import GramianFactors, gramian_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.norms import difference, error_bound, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.reduce import reduce_diagonal
from compressm.reduction.reducers import BalancedTruncation, Reducer, SingularPerturbation
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.weighting import Limits, Weighting
from compressm.testing.strategies import dense_systems, diagonal_systems

# Round-off, relative to the larger of the gain and the weights |Lp_i| |Lq_i| of the states
# (far above the gain where strong states cancel). Poles up to 0.9999 amplify eps by 1e4 in a gain.
ROUND_OFF = 1e-9
FRACTIONS = st.floats(0, 1, exclude_max=True)


def frame_for(system: StateSpace, complex_frame: bool) -> Frame:
    return Frame.COMPLEX if complex_frame or (system.output == "complex" and system.is_complex) else Frame.REAL


def as_balanced(system: StateSpace, frame: Frame) -> StateSpace:
    """The system whose Hankel singular values the frame has: for Frame.COMPLEX, all of y = C x."""
    return in_frame(system, frame) if frame is Frame.REAL else complex_output(in_frame(system, frame))


def complex_output(system: StateSpace) -> StateSpace:
    return StateSpace(system.a, system.b, system.c, system.d, system.sampling_time, "complex")


def check_bound(system: StateSpace, frame: Frame, reducer: Reducer, fraction: float) -> None:
    full = as_balanced(system, frame)
    factors = gramian_factors(reducer.balanced_system(system), frame)
    spectrum = hankel_spectrum(factors)
    rank = numerical_rank(spectrum.values)
    assume(rank > 0)
    states = 1 + int(fraction * rank)
    try:
        small = as_balanced(reducer.reduce(full, factors, spectrum, states).system, frame)
    except UnsupportedReductionError:  # singular perturbation where the state matrix cannot be inverted
        assert reducer.changes_feedthrough
        assume(False)
    assert small.order <= states
    slack = round_off(factors, full)
    if not small.is_stable():  # `reduce_diagonal` and `reduce_dense` go to a lower order then
        assert float(spectrum.values[small.order - 1]) <= slack, "more than the last digits are unstable"
        return
    check_error(full, small, spectrum.values, slack)


def round_off(factors: GramianFactors, full: StateSpace) -> float:
    weights = factors.controllability.norm(dim=-1) * factors.observability.norm(dim=-1)
    return ROUND_OFF * max(float(weights.max()), hinf_norm(full))


def check_error(
    full: StateSpace, small: StateSpace, values: torch.Tensor, slack: float, order: int | None = None
) -> None:
    order = small.order if order is None else order
    assert small.is_stable()
    error = hinf_norm(difference(full, small))
    assert error <= error_bound(values, order) * (1 + 1e-6) + slack
    if order < len(values):
        assert error >= float(values[order]) * (1 - 1e-6) - slack


@pytest.mark.parametrize("method", list(BalancingMethod))
@settings(max_examples=300)
@given(diagonal_systems(max_order=8), FRACTIONS)
def test_balanced_truncation_of_diagonal_systems(method: BalancingMethod, system: StateSpace, fraction: float) -> None:
    check_bound(system, frame_for(system, False), BalancedTruncation(method), fraction)


@settings(max_examples=300)
@given(diagonal_systems(max_order=8), FRACTIONS)
def test_balanced_truncation_in_the_complex_frame(system: StateSpace, fraction: float) -> None:
    check_bound(system, Frame.COMPLEX, BalancedTruncation(), fraction)


@settings(max_examples=300)
@given(dense_systems(max_order=10), FRACTIONS, st.sampled_from(BalancingMethod))
def test_balanced_truncation_of_dense_systems(system: StateSpace, fraction: float, method: BalancingMethod) -> None:
    check_bound(system, frame_for(system, False), BalancedTruncation(method), fraction)


@settings(max_examples=60)
@given(diagonal_systems(min_order=9, max_order=24) | dense_systems(max_order=24), FRACTIONS)
def test_balanced_truncation_of_larger_systems(system: StateSpace, fraction: float) -> None:
    check_bound(system, frame_for(system, False), BalancedTruncation(), fraction)


@settings(max_examples=300)
@given(diagonal_systems(max_order=6, max_channels=3), FRACTIONS)
def test_singular_perturbation(system: StateSpace, fraction: float) -> None:
    check_bound(system, frame_for(system, False), SingularPerturbation(), fraction)


@pytest.mark.parametrize("frame", list(Frame))
@settings(max_examples=300)
@given(diagonal_systems(max_order=8, outputs=("real",)), FRACTIONS)
def test_the_stored_form_of_a_reduced_system(frame: Frame, system: StateSpace, fraction: float) -> None:
    """What a diagonal layer stores (pairs merged, real poles turned, states rescaled) obeys the bound of its order."""
    factors = gramian_factors(system, frame)
    weighting = Weighting(factors, hankel_spectrum(factors), GramianSource.WHITE, GramianSource.WHITE)
    slots = 1 + int(fraction * system.order)
    choice = OrderChoice(slots * (2 if frame is Frame.REAL else 1), slots)
    reduction = reduce_diagonal(system, weighting, choice, BalancedTruncation(), Limits())
    assert isinstance(reduction, Reduction)
    assert reduction.order <= slots
    slack = 1e3 * round_off(factors, as_balanced(system, frame))  # eigenvectors up to a condition number of 1e5
    full, small = system, reduction.system
    if frame is Frame.COMPLEX:
        full, small = complex_output(full), complex_output(small)
    check_error(full, small, weighting.spectrum.values, slack, order=reduction.real_order)
