from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import InvalidSystemError, UnstableSystemError
from compressm.linalg.forms import Frame, realify, similarity
from compressm.linalg.gramians import GramianFactors, gramian_factors
from compressm.linalg.hankel import hankel_nuclear_norm, hankel_singular_values, hankel_spectrum
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import PoleKind, Recipe, build_diagonal, ring_system, stack_systems


@pytest.mark.parametrize("pole", [0.0, 1e-9, -0.5, 0.3 + 0.4j, 0.9999, -0.9999])
def test_one_state(pole: complex) -> None:
    """sigma = |b| |c| / (1 - |a|^2)."""
    a, b, c = (torch.tensor(t, dtype=torch.complex128) for t in ([pole], [[3.0 - 4j, 0]], [[2j], [1.5]]))
    found = hankel_singular_values(StateSpace(a, b, c, output="complex"), Frame.COMPLEX)
    assert float(found) == pytest.approx(5 * 2.5 / (1 - abs(pole) ** 2), rel=1e-11)


def test_values_are_those_of_the_hankel_matrix() -> None:
    """The operator from past inputs to future outputs, cut off where it has decayed: block (i, j) is h_{i+j}."""
    system = ring_system(3, 2, 1, smallest=0.3, largest=0.8)
    markov = system.markov_parameters(240)
    rows = [torch.cat([markov[i + j] for j in range(120)], -1) for i in range(120)]
    wanted = torch.linalg.svdvals(torch.cat(rows, -2))[:6]
    assert torch.allclose(hankel_singular_values(system), wanted, rtol=1e-9, atol=1e-12)
    assert float(hankel_nuclear_norm(system)) == pytest.approx(float(wanted.sum()), rel=1e-9)


def test_the_two_frames_differ() -> None:
    """y = Re(C x) is not y = C x: facts that the choice of frame is about."""
    system = ring_system(8, 2, 2)
    real, complex_ = hankel_singular_values(system, Frame.REAL), hankel_singular_values(system, Frame.COMPLEX)
    assert real.shape == (16,)
    assert complex_.shape == (8,)
    assert not torch.allclose(real[:8], complex_, rtol=0.05)


def test_ill_conditioned_similarity() -> None:
    system = realify(ring_system(6, 2, 2, largest=0.98))
    wanted = hankel_singular_values(system)
    transform = torch.triu(torch.ones(12, 12, dtype=torch.float64)) * torch.logspace(-3, 3, 12, dtype=torch.float64)
    assert float(torch.linalg.cond(transform)) > 1e6
    found = hankel_singular_values(similarity(system, transform))
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8 * float(wanted[0]))


def test_values_are_never_nan_for_a_fast_decay_in_single_precision() -> None:
    """sqrt(eig(P Q)) in complex64 gives NaN for about a third of these."""
    for seed in range(20):
        system = build_diagonal(Recipe((PoleKind.FAST,) * 16, 1, 1, seed))
        single = StateSpace(*(t.to(torch.complex64) for t in (system.a, system.b, system.c)))
        values = hankel_singular_values(single)
        assert values.dtype == torch.float64
        assert bool(torch.isfinite(values).all())
        assert float(values.min()) >= 0
        assert bool((values.diff() <= 0).all())


@pytest.mark.parametrize("which", ["b", "c"])
def test_a_zero_map_has_zero_values(which: str) -> None:
    system = ring_system(4, 2, 2)
    zero = {which: torch.zeros_like(getattr(system, which))}
    system = StateSpace(**{"a": system.a, "b": system.b, "c": system.c, "log_a": system.log_a} | zero)
    for frame in Frame:
        assert float(hankel_singular_values(system, frame).max()) == 0


def test_factors_that_are_not_finite_are_refused() -> None:
    for value in (math.nan, math.inf):
        bad = torch.eye(3, dtype=torch.float64)
        bad[1, 1] = value
        good = torch.eye(3, dtype=torch.float64)
        for factors in (GramianFactors(bad, good, Frame.REAL), GramianFactors(good, bad, Frame.REAL)):
            with pytest.raises(InvalidSystemError, match="NaN or infinite"):
                hankel_spectrum(factors)


def test_the_spectrum_is_a_decomposition_of_the_factors() -> None:
    factors = gramian_factors(ring_system(5, 2, 3))
    spectrum = hankel_spectrum(factors)
    product = factors.observability.mH @ factors.controllability
    assert torch.allclose(spectrum.left * spectrum.values @ spectrum.right.mH, product, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 2])
def test_values_without_vectors_are_the_same(outputs: int) -> None:
    factors = gramian_factors(stack_systems([ring_system(7, 1, outputs, seed=i) for i in range(40)]))
    whole, values = hankel_spectrum(factors), hankel_spectrum(factors, vectors=False)
    assert torch.allclose(values.values, whole.values, rtol=1e-10, atol=1e-14)
    assert values.left.shape == values.right.shape == (40, 14, 0)


def test_unstable_systems_need_a_horizon() -> None:
    system = StateSpace(torch.tensor([1.1 + 0j]), torch.ones(1, 1) + 0j, torch.ones(1, 1) + 0j)
    with pytest.raises(UnstableSystemError, match="finite horizon"):
        hankel_singular_values(system)
    assert float(hankel_singular_values(system, Frame.COMPLEX, horizon=3)) == pytest.approx(
        1 + 1.21 + 1.21**2, rel=1e-6
    )
