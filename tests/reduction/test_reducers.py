from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import BalancingMethod, numerical_rank
from compressm.linalg.forms import realify
from compressm.linalg.gramians import controllability_gramian, gramian_factors, observability_gramian
from compressm.linalg.hankel import HankelSpectrum, hankel_spectrum
from compressm.linalg.norms import difference, error_bound, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import BalancedTruncation, Keep, Projected, Reducer, SingularPerturbation
from compressm.testing.strategies import diagonal_systems
from compressm.testing.systems import PoleKind, Recipe, build_diagonal, ring_system

DC = torch.zeros(1, dtype=torch.float64)


def reduce(system: StateSpace, reducer: Reducer, states: int) -> tuple[Projected, HankelSpectrum]:
    factors = gramian_factors(reducer.balanced_system(system))
    spectrum = hankel_spectrum(factors)
    return reducer.reduce(realify(system), factors, spectrum, states), spectrum


@settings(max_examples=100)
@given(diagonal_systems(max_order=8, outputs=("real",)), st.floats(0, 1, exclude_max=True))
def test_singular_perturbation_keeps_the_gain_at_zero_frequency(system: StateSpace, fraction: float) -> None:
    reducer = SingularPerturbation()
    factors = gramian_factors(reducer.balanced_system(system))
    spectrum = hankel_spectrum(factors)
    rank = numerical_rank(spectrum.values)
    assume(rank > 0)
    try:
        small = reducer.reduce(realify(system), factors, spectrum, 1 + int(fraction * rank)).system
    except UnsupportedReductionError:
        assume(False)
    weight = float((factors.controllability.norm(dim=-1) * factors.observability.norm(dim=-1)).max())
    full = system.frequency_response(DC)
    slack = 1e-9 * max(weight, float(full.abs().max()), hinf_norm(system))
    assert float((small.frequency_response(DC) - full).abs().max()) <= slack


def test_balanced_truncation_does_not_keep_it_and_leaves_d() -> None:
    """What the two reducers differ in."""
    system = build_diagonal(Recipe((PoleKind.RING,) * 6, 2, 3, 2, feedthrough=True))
    truncated, spectrum = reduce(system, BalancedTruncation(), 4)
    perturbed, shifted = reduce(system, SingularPerturbation(), 4)
    full = system.frequency_response(DC)
    assert torch.allclose(perturbed.system.frequency_response(DC), full, atol=1e-10)
    assert float((truncated.system.frequency_response(DC) - full).abs().max()) > 1e-4
    assert torch.equal(truncated.system.d, system.d)
    assert not torch.allclose(perturbed.system.d, system.d, atol=1e-3)
    assert perturbed.system.d.shape == (3, 2)
    assert hinf_norm(difference(system, truncated.system)) <= error_bound(spectrum.values, 4)
    assert hinf_norm(difference(system, perturbed.system)) <= error_bound(shifted.values, 4)


def test_both_are_exact_at_full_order() -> None:
    system = ring_system(5, 2, 2)
    for reducer in (BalancedTruncation(), BalancedTruncation(BalancingMethod.BALANCING_FREE), SingularPerturbation()):
        small, _ = reduce(system, reducer, 10)
        assert hinf_norm(difference(system, small.system)) < 1e-9 * hinf_norm(system)


def test_more_states_than_the_rank_are_not_invented() -> None:
    system = build_diagonal(Recipe((PoleKind.RING, PoleKind.REPEATED, PoleKind.REPEATED), 1, 1, 3))
    for reducer in (BalancedTruncation(), SingularPerturbation()):
        small, _ = reduce(system, reducer, 6)
        assert small.system.order == 2
        assert hinf_norm(difference(system, small.system)) < 1e-9 * hinf_norm(system)


def test_singular_perturbation_that_cannot_be_stored_says_so() -> None:
    """The output after the state update needs an invertible state matrix; here it is nilpotent."""
    shift = torch.diag(torch.ones(2, dtype=torch.float64), -1)
    b, c = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    b[0], c[0, 2] = 1, 1
    with pytest.raises(UnsupportedReductionError, match="condition number"):
        reduce(StateSpace(shift, b, c), SingularPerturbation(), 2)


def test_ablation_choices() -> None:
    system = ring_system(6, 2, 2)
    errors = {}
    for keep in Keep:
        small, spectrum = reduce(system, BalancedTruncation(keep=keep, seed=3), 6)
        assert small.system.order == 6
        errors[keep] = hinf_norm(difference(system, small.system)) if small.system.is_stable() else float("inf")
        p = small.projection.w.mT @ controllability_gramian(system) @ small.projection.w
        kept = p.diagonal()
        if keep is Keep.LARGEST:
            assert torch.allclose(kept, spectrum.values[:6], rtol=1e-8)
        if keep is Keep.SMALLEST:
            assert torch.allclose(kept, spectrum.values[6:], rtol=1e-8)
        q = small.projection.v.mT @ observability_gramian(system) @ small.projection.v
        assert torch.allclose(q.diagonal(), kept, rtol=1e-8)
    assert errors[Keep.LARGEST] < errors[Keep.RANDOM]
    assert errors[Keep.LARGEST] < 0.5 * errors[Keep.SMALLEST]
    assert BalancedTruncation().has_bound
    assert not BalancedTruncation(keep=Keep.RANDOM).has_bound
    assert SingularPerturbation().has_bound
    assert SingularPerturbation().changes_feedthrough


def test_random_choices_are_seeded() -> None:
    system = ring_system(6, 2, 2)
    first, second, other = (
        reduce(system, BalancedTruncation(keep=Keep.RANDOM, seed=seed), 4)[0].system for seed in (1, 1, 2)
    )
    state = torch.random.get_rng_state()
    assert torch.equal(first.a, second.a)
    assert not torch.equal(first.a, other.a)
    assert torch.equal(state, torch.random.get_rng_state())
