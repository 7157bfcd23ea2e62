from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compressm.errors import InvalidSystemError
from compressm.linalg.balancing import BalancingMethod, balancing_projection, numerical_rank
from compressm.linalg.forms import Frame, in_frame, realify
from compressm.linalg.gramians import (
    controllability_gramian,
    gramian_factors,
    observability_gramian,
)
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import ring_system, stack_systems, unstack_systems


@pytest.mark.parametrize("frame", list(Frame))
@pytest.mark.parametrize("method", list(BalancingMethod))
def test_a_full_projection_changes_nothing(frame: Frame, method: BalancingMethod) -> None:
    system = ring_system(6, 3, 2)
    factors = gramian_factors(system, frame)
    spectrum = hankel_spectrum(factors)
    states = spectrum.values.shape[-1]
    projection = balancing_projection(factors, spectrum, torch.arange(states), method)
    assert torch.allclose(projection.w.mH @ projection.v, torch.eye(states, dtype=projection.v.dtype), atol=1e-9)
    dense = in_frame(system, frame)
    whole = projection.apply(dense, frame)
    assert whole.order == states
    direct = projection.apply(system, frame)  # without the dense form
    assert all(torch.allclose(getattr(direct, n), getattr(whole, n), rtol=0, atol=1e-12) for n in "abc")
    assert hinf_norm(difference(dense, whole)) < 1e-10 * hinf_norm(dense)


def test_the_square_root_method_gives_balanced_coordinates() -> None:
    system = realify(ring_system(6, 3, 2))
    factors = gramian_factors(system)
    spectrum = hankel_spectrum(factors)
    for kept in (12, 5):
        projection = balancing_projection(factors, spectrum, torch.arange(kept))
        small = projection.apply(system, Frame.REAL)
        sigma = torch.diag(spectrum.values[:kept])
        if kept == 12:
            for gramian in (controllability_gramian(small), observability_gramian(small)):
                assert torch.allclose(gramian, sigma, atol=1e-10 * float(sigma.max()))
        p, q = controllability_gramian(system), observability_gramian(system)
        assert torch.allclose(projection.w.mT @ p @ projection.w, sigma, atol=1e-10 * float(sigma.max()))
        assert torch.allclose(projection.v.mT @ q @ projection.v, sigma, atol=1e-10 * float(sigma.max()))


def test_both_methods_give_one_map() -> None:
    system = realify(ring_system(8, 2, 2))
    factors = gramian_factors(system)
    spectrum = hankel_spectrum(factors)
    first, second = (
        balancing_projection(factors, spectrum, torch.arange(7), method).apply(system, Frame.REAL)
        for method in BalancingMethod
    )
    assert hinf_norm(difference(first, second)) < 1e-10 * hinf_norm(system)
    v = balancing_projection(factors, spectrum, torch.arange(7), BalancingMethod.BALANCING_FREE).v
    assert torch.allclose(v.mT @ v, torch.eye(7, dtype=v.dtype), atol=1e-13)


def test_any_set_of_balanced_states_can_be_kept() -> None:
    system = realify(ring_system(4, 2, 2))
    factors = gramian_factors(system)
    spectrum = hankel_spectrum(factors)
    keep = torch.tensor([0, 3, 5])
    projection = balancing_projection(factors, spectrum, keep)
    gramian = projection.w.mT @ controllability_gramian(system) @ projection.w
    assert torch.allclose(gramian, torch.diag(spectrum.values[keep]), atol=1e-10)


def test_a_batch_equals_a_loop() -> None:
    each = [realify(ring_system(4, 2, 2, seed=seed)) for seed in range(3)]
    batch = stack_systems(each)
    factors = gramian_factors(batch)
    whole = balancing_projection(factors, hankel_spectrum(factors), torch.arange(4)).apply(batch, Frame.REAL)
    for system, small in zip(each, unstack_systems(whole), strict=True):
        factors = gramian_factors(system)
        wanted = balancing_projection(factors, hankel_spectrum(factors), torch.arange(4)).apply(system, Frame.REAL)
        assert hinf_norm(difference(wanted, small)) < 1e-10 * hinf_norm(system)


def test_states_with_the_value_zero_are_refused() -> None:
    system = realify(ring_system(2, 1, 1))
    silent = StateSpace(system.a, system.b, torch.zeros_like(system.c))
    factors = gramian_factors(silent)
    with pytest.raises(InvalidSystemError, match="cannot be kept"):
        balancing_projection(factors, hankel_spectrum(factors), torch.arange(1))


def test_a_projection_in_the_real_frame_is_for_a_real_output() -> None:
    system = ring_system(2, 1, 1)
    factors = gramian_factors(system)
    projection = balancing_projection(factors, hankel_spectrum(factors), torch.arange(1))
    with pytest.raises(InvalidSystemError, match="no real frame"):
        projection.apply(replace(system, output="complex"), Frame.REAL)


def test_numerical_rank() -> None:
    eps = torch.finfo(torch.float64).eps
    assert numerical_rank(torch.zeros(0, dtype=torch.float64)) == 0
    assert numerical_rank(torch.zeros(5, dtype=torch.float64)) == 0
    values = torch.tensor([1.0, 1e-7, 1e-9, 10 * eps, 2 * eps, 0.0], dtype=torch.float64)
    assert numerical_rank(values) == 4
    assert numerical_rank(values * 1e-200) == 4
    assert numerical_rank(values, BalancingMethod.BALANCING_FREE) == 2
    assert numerical_rank(torch.stack([values, torch.ones(6, dtype=torch.float64)])) == 4


def test_truncation_is_stable_at_every_order() -> None:
    for seed in range(5):
        system = realify(ring_system(8, 1, 2, seed=seed, smallest=0.99, largest=0.9999))
        factors = gramian_factors(system)
        spectrum = hankel_spectrum(factors)
        for order in range(1, 16):
            small = balancing_projection(factors, spectrum, torch.arange(order)).apply(system, Frame.REAL)
            assert small.is_stable()
            # balanced Gramians of the truncated system are sub-blocks in continuous time only; never larger in discrete
            assert float(hankel_singular_values(small)[0]) <= float(spectrum.values[0]) * (1 + 1e-9)
