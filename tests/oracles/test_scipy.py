"""Gramians and responses against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressm.linalg.forms import Discretization, Frame, discretize, in_frame, realify, strictly_causal
from compressm.linalg.gramians import controllability_gramian, observability_gramian
from compressm.linalg.statespace import StateSpace
from compressm.testing.strategies import continuous_systems, systems
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, ring_system

linalg = pytest.importorskip("scipy.linalg")
signal = pytest.importorskip("scipy.signal")


def frame_of(system: StateSpace) -> Frame:
    return Frame.COMPLEX if system.output == "complex" and system.is_complex else Frame.REAL


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float) -> bool:
    """Entries relative to sqrt(P_ii P_jj): scipy's own errors are relative to the whole matrix, so also to its size."""
    wanted = torch.from_numpy(np.asarray(wanted))
    size = found.diagonal().real.clamp_min(0).sqrt()
    allowed = tolerance * (size[:, None] * size + wanted.abs().max())
    return bool(((found - wanted).abs() <= allowed + 1e-300).all())


def test_the_oracle_on_one_state() -> None:
    assert linalg.solve_discrete_lyapunov(np.array([[0.5j]]), np.array([[3.0]]))[0, 0] == pytest.approx(4.0)
    assert linalg.solve_continuous_lyapunov(np.array([[-2.0]]), -np.array([[4.0]]))[0, 0] == pytest.approx(1.0)


@settings(max_examples=100)
@given(systems(max_order=12, defects=False))
def test_discrete_gramians(system: StateSpace) -> None:
    frame = frame_of(system)
    dense = in_frame(system, frame)
    a, b, c = (t.numpy() for t in (dense.a, dense.b, dense.c))
    p = linalg.solve_discrete_lyapunov(a, b @ b.conj().T, method="bilinear")
    q = linalg.solve_discrete_lyapunov(a.conj().T, c.conj().T @ c, method="bilinear")
    assert close(controllability_gramian(system, frame), p, 1e-8)
    assert close(observability_gramian(system, frame), q, 1e-8)


@settings(max_examples=100)
@given(continuous_systems() | continuous_systems(dense=True))
def test_continuous_gramians(system: StateSpace) -> None:
    frame = frame_of(system)
    dense = in_frame(system, frame)
    a, b, c = (t.numpy() for t in (dense.a, dense.b, dense.c))
    p = linalg.solve_continuous_lyapunov(a, -b @ b.conj().T)
    q = linalg.solve_continuous_lyapunov(a.conj().T, -c.conj().T @ c)
    assert close(controllability_gramian(system, frame), p, 1e-8)
    assert close(observability_gramian(system, frame), q, 1e-8)


@pytest.mark.parametrize("rate", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_continuous_dense_gramians_at_any_scale_of_time(rate: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    rates = torch.logspace(0, float(np.log10(spread)), 6, dtype=torch.float64)
    a = -turn @ torch.diag(rate * rates) @ turn.mT
    b, c = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((6, 2), (2, 6)))
    found = controllability_gramian(StateSpace(a, b, c, sampling_time=0.0))
    wanted = torch.from_numpy(linalg.solve_continuous_lyapunov(a.numpy(), -(b @ b.mT).numpy()))
    assert float((found - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


@pytest.mark.parametrize(("method", "name"), [(Discretization.ZOH, "zoh"), (Discretization.BILINEAR, "bilinear")])
@pytest.mark.parametrize("dense", [False, True])
def test_discretization(method: Discretization, name: str, dense: bool) -> None:
    """scipy's bilinear rule moves half of the input into C and D; the state and input matrices are as here."""
    log_a = torch.complex(-torch.linspace(0.05, 2, 5, dtype=torch.float64), torch.linspace(-3, 3, 5).double())
    ring = ring_system(5, 2, 2)
    a = torch.diag_embed(log_a) if dense else log_a
    system = StateSpace(a, ring.b, ring.c, sampling_time=0.0, output="complex")
    found = discretize(system, 0.1, method)
    a, b, _, _, _ = signal.cont2discrete(
        (np.diag(log_a.numpy()), ring.b.numpy(), ring.c.numpy(), np.zeros((2, 2))), 0.1, method=name
    )
    assert np.allclose((found.a if dense else torch.diag(found.a)).numpy(), a, rtol=1e-12, atol=1e-14)
    assert np.allclose(found.b.numpy(), b, rtol=1e-12, atol=1e-14)
    assert found.sampling_time == 0.1


def test_impulse_and_frequency_response() -> None:
    """scipy has the textbook convention y_k = C' x_{k-1} + D' u_k."""
    system = build_dense(Recipe((PoleKind.RING,) * 4, 2, 3, seed=3, defects=frozenset({Defect.RESCALED})))
    textbook = strictly_causal(realify(system))
    matrices = tuple(t.numpy() for t in (textbook.a, textbook.b, textbook.c, textbook.d))
    omega = torch.linspace(0.1, 3, 20, dtype=torch.float64)
    response = system.frequency_response(omega).numpy()
    markov = system.markov_parameters(25).numpy()
    for i in range(2):
        one = (matrices[0], matrices[1][:, i : i + 1], matrices[2], matrices[3][:, i : i + 1], 1.0)
        _, impulse = signal.dimpulse(one, n=25)
        assert np.allclose(impulse[0], markov[:, :, i], rtol=1e-9, atol=1e-12)
        for j in range(3):
            row = (one[0], one[1], one[2][j : j + 1], one[3][j : j + 1], 1.0)
            _, wanted = signal.dfreqresp(row, omega.numpy())
            assert np.allclose(response[:, j, i], wanted, rtol=1e-8, atol=1e-10)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_matrix_exponential_of_a_dense_system_with_a_pole_at_zero(seed: int) -> None:
    """Zero-order hold where A is singular and A^{-1} (e^A - I) B cannot be formed."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a[:, 0] = 0
    b, c = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 2), (1, 4)))
    found = discretize(StateSpace(a, b, c, sampling_time=0.0), 0.05, Discretization.ZOH)
    wanted = signal.cont2discrete((a.numpy(), b.numpy(), c.numpy(), np.zeros((1, 2))), 0.05)
    assert np.allclose(found.a.numpy(), wanted[0], rtol=1e-12, atol=1e-14)
    assert np.allclose(found.b.numpy(), wanted[1], rtol=1e-12, atol=1e-14)
