"""Hankel singular values and reduced models against SLICOT's AB09AD, in discrete and continuous time.

Singular perturbation is checked through AB09AD too: it is balanced truncation of the reciprocal system (Liu and
Anderson 1989). SLICOT's own routine for it, AB09BD, is not used: slycot 0.7 gives it too little memory and crashes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressm.linalg.balancing import BalancingMethod
from compressm.linalg.forms import Discretization, Frame, discretize, in_frame, realify, strictly_causal, to_continuous
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import BalancedTruncation, SingularPerturbation
from compressm.testing.systems import PoleKind, Recipe, build_dense, build_diagonal

slycot = pytest.importorskip("slycot")

KINDS = (PoleKind.RING, PoleKind.FAST, PoleKind.POSITIVE, PoleKind.RING, PoleKind.NEGATIVE, PoleKind.RING)


def cases() -> list[StateSpace]:
    recipes = [Recipe(KINDS[: 2 + seed % 5], 1 + seed % 3, 1 + seed % 2, seed) for seed in range(12)]
    return [(build_dense if i % 2 else build_diagonal)(recipe) for i, recipe in enumerate(recipes)]


def slicot_form(system: StateSpace) -> tuple[np.ndarray, ...]:
    """SLICOT has the textbook convention y_k = C' x_{k-1} + D' u_k; Fortran order."""
    real = realify(system)
    textbook = strictly_causal(real) if real.is_discrete else real
    d = torch.zeros(real.outputs, real.inputs, dtype=torch.float64) if textbook.d is None else textbook.d
    return tuple(np.asfortranarray(t.numpy()) for t in (textbook.a, textbook.b, textbook.c, d))


def truncated(system: StateSpace, time: str, order: int) -> tuple[np.ndarray, ...]:
    """(A_r, B_r, C_r, hsv) of AB09AD for the Gramians of (A, B) and (A, C), without the shift."""
    real = realify(system)
    a, b, c = (np.asfortranarray(t.numpy()) for t in (real.a, real.b, real.c))
    result = slycot.ab09ad(time, "B", "N", real.order, real.inputs, real.outputs, a, b, c, order, 0.0)
    assert result[0] == order
    return result[1:5]


def test_the_oracle_on_one_state() -> None:
    one = StateSpace(*(torch.tensor([[t]], dtype=torch.float64) for t in (0.5, 3.0, 2.0)))
    assert truncated(one, "D", 1)[3][0] == pytest.approx(3.0 * 2.0 / (1 - 0.25))
    assert float(hankel_singular_values(one)[0]) == pytest.approx(3.0 * 2.0 / (1 - 0.25))


@pytest.mark.parametrize("system", cases())
def test_discrete_balanced_truncation(system: StateSpace) -> None:
    values = hankel_singular_values(system).numpy()
    order = int((values > 1e-6 * values[0]).sum()) // 2 + 1
    a, b, c, wanted = truncated(system, "D", order)
    assert np.allclose(values, wanted, rtol=1e-8, atol=1e-11 * values[0])
    theirs = StateSpace(*map(torch.from_numpy, (a.copy(), b.copy(), c.copy())))
    factors = gramian_factors(system)
    for method in BalancingMethod:
        ours = BalancedTruncation(method).reduce(realify(system), factors, hankel_spectrum(factors), order).system
        assert hinf_norm(difference(ours, theirs)) <= 1e-7 * float(values[0])


@pytest.mark.parametrize("seed", range(4))
def test_continuous_balanced_truncation(seed: int) -> None:
    discrete = build_diagonal(Recipe((PoleKind.RING,) * 4, 2, 2, seed, output="real"))
    system = to_continuous(discrete, Discretization.ZOH)
    values = hankel_singular_values(system).numpy()
    order = 4
    a, b, c, wanted = truncated(system, "C", order)
    assert np.allclose(values, wanted, rtol=1e-8, atol=1e-11 * values[0])
    theirs = StateSpace(*map(torch.from_numpy, (a.copy(), b.copy(), c.copy())), sampling_time=0.0)
    factors = gramian_factors(system)
    ours = BalancedTruncation().reduce(in_frame(system, Frame.REAL), factors, hankel_spectrum(factors), order).system
    omega = torch.logspace(-3, 2, 60, dtype=torch.float64)
    gap = ours.frequency_response(omega) - theirs.frequency_response(omega)
    assert float(gap.abs().max()) <= 1e-8 * float(theirs.frequency_response(omega).abs().max())
    assert discretize(ours, 1.0, Discretization.ZOH).is_stable()


def reciprocal(system: StateSpace) -> tuple[np.ndarray, ...]:
    """The continuous system H with G(z) = H(p) for p = (z + 1) / (z - 1), of a textbook discrete system."""
    a, b, c, d = slicot_form(system)
    inverse = np.linalg.inv(a + np.eye(len(a)))
    a, b, c, d = inverse @ (a - np.eye(len(a))), 2**0.5 * inverse @ b, 2**0.5 * c @ inverse, d - c @ inverse @ b
    inverse = np.linalg.inv(a)
    return inverse, -inverse @ b, c @ inverse, d - c @ inverse @ b


@pytest.mark.parametrize("system", [s for s in cases() if s.order > 2])
def test_singular_perturbation(system: StateSpace) -> None:
    factors = gramian_factors(strictly_causal(realify(system)))
    spectrum = hankel_spectrum(factors)
    order = max(1, int((spectrum.values > 1e-6 * spectrum.values[0]).sum()) // 2)
    a, b, c, d = (np.asfortranarray(t) for t in reciprocal(system))
    result = slycot.ab09ad("C", "B", "N", a.shape[0], b.shape[1], c.shape[0], a, b, c, order, 0.0)
    assert result[0] == order
    assert np.allclose(spectrum.values.numpy(), result[4], rtol=1e-8, atol=1e-10 * float(spectrum.values[0]))
    ours = SingularPerturbation().reduce(realify(system), factors, spectrum, order).system
    omega = torch.linspace(0.01, 3.14, 50, dtype=torch.float64)
    z = np.exp(1j * omega.numpy())[:, None, None]
    theirs = result[3] @ np.linalg.solve((z + 1) / (z - 1) * np.eye(order) - result[1], result[2][None] + 0j) + d
    assert np.abs(ours.frequency_response(omega).numpy() - theirs).max() <= 1e-8 * float(spectrum.values[0])
