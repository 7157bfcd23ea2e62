from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame, realify
from compressm.linalg.gramians import (
    controllability_gramian,
    dual,
    gramian_factors,
    moment_factor,
    observability_gramian,
)
from compressm.linalg.hankel import hankel_singular_values
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import PoleKind, Recipe, build_dense, build_diagonal, ring_system


def one_state() -> StateSpace:
    values = ([0.6 + 0.3j], [[2.0 - 1j, 1j]], [[0.5 + 4j]])
    a, b, c = (torch.tensor(t, dtype=torch.complex128) for t in values)
    return StateSpace(a, b, c, output="complex")


def test_one_state() -> None:
    system, decay = one_state(), 1 - 0.45
    assert float(controllability_gramian(system, Frame.COMPLEX).real) == pytest.approx(6 / decay)
    assert float(observability_gramian(system, Frame.COMPLEX).real) == pytest.approx(16.25 / decay)


@pytest.mark.parametrize("rate", [1e-3, 1e-9, 1e-15, 1e-20])
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_slow_real_pole_keeps_its_digits(rate: float, inputs: int) -> None:
    """sigma = |Re(c b)| / (1 - a^2) for a real pole of a complex layer, however near it is to 1."""
    log_a = torch.tensor([-rate, -0.7], dtype=torch.float64).to(torch.complex128)
    b = torch.zeros(2, inputs, dtype=torch.complex128)
    b[:, 0] = torch.tensor([1 + 1j, 1e-14])
    c = torch.tensor([[1 + 0.5j, 1e-14]], dtype=torch.complex128)
    values = hankel_singular_values(StateSpace(torch.exp(log_a), b, c, log_a=log_a))
    assert float(values[0]) == pytest.approx(-0.5 / math.expm1(-2 * rate), rel=1e-13)


@pytest.mark.parametrize("poles", [[0.9, -0.5, 0.2], [0.7, 0.7, 0.7 - 1e-13]], ids=str)
@pytest.mark.parametrize("inputs", [1, 2])
def test_real_poles_with_their_logarithms_give_real_gramians(poles: list[float], inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.tensor(poles, dtype=torch.float64)
    b = torch.randn(3, inputs, dtype=torch.float64, generator=generator)
    system = StateSpace(a, b, torch.randn(2, 3, dtype=torch.float64, generator=generator), log_a=torch.log(a + 0j))
    dense = StateSpace(torch.diag(a), b, system.c)
    for gramian in (controllability_gramian, observability_gramian):
        found, wanted = gramian(system), gramian(dense)
        assert found.dtype is torch.float64
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_real_frame_is_that_of_the_real_system() -> None:
    system = ring_system(5, 2, 3)
    real = realify(system)
    for gramian in (controllability_gramian, observability_gramian):
        found, wanted = gramian(system), gramian(real)
        assert not found.is_complex()
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("horizon", [None, 12])
def test_duality(horizon: int | None) -> None:
    """Re(C x) of a complex system too: its dual is the dual of the real system."""
    for system in (ring_system(5, 2, 3), build_dense(Recipe((PoleKind.RING,) * 3, 2, 3, 1))):
        for frame in Frame:
            first = observability_gramian(system, frame, horizon)
            assert torch.allclose(first, controllability_gramian(dual(system), frame, horizon), rtol=1e-12, atol=1e-12)
    transposed = dual(dual(ring_system(5, 2, 3)))
    assert torch.equal(transposed.b, ring_system(5, 2, 3).b)
    assert transposed.log_a is not None


def test_the_infinite_horizon_is_the_limit_of_finite_ones() -> None:
    system = ring_system(4, 2, 2, largest=0.95)
    whole = controllability_gramian(system)
    part = controllability_gramian(system, horizon=200)
    rest = whole - part
    assert float(torch.linalg.eigvalsh(rest).min()) > -1e-12  # P - A^L P A*^L is at most P
    assert torch.allclose(whole, controllability_gramian(system, horizon=4000), rtol=1e-10, atol=1e-12)


def test_horizons_of_undamped_systems() -> None:
    undamped = StateSpace(
        torch.exp(1j * torch.tensor([0.5, 1.2], dtype=torch.float64)), ring_system(2, 1, 1).b, ring_system(2, 1, 1).c
    )
    gramian = controllability_gramian(undamped, Frame.COMPLEX, horizon=50)
    assert torch.allclose(gramian.diagonal().real, 50 * undamped.b.abs().square()[:, 0])
    assert bool(torch.isfinite(hankel_singular_values(undamped, horizon=50)).all())


def test_horizon_of_continuous_time_is_refused() -> None:
    system = StateSpace(-torch.ones(1), torch.ones(1, 1), torch.ones(1, 1), sampling_time=0.0)
    with pytest.raises(InvalidSystemError, match="discretize"):
        gramian_factors(system, horizon=5)


def test_a_complex_output_has_no_real_frame() -> None:
    with pytest.raises(InvalidSystemError, match=r"Frame\.COMPLEX"):
        gramian_factors(one_state(), Frame.REAL)


@pytest.mark.parametrize("frame", list(Frame))
@pytest.mark.parametrize("horizon", [None, 1, 3])
@pytest.mark.parametrize("dense", [False, True])
def test_factors_are_square_whatever_their_rank(frame: Frame, horizon: int | None, dense: bool) -> None:
    build = build_dense if dense else build_diagonal
    system = build(Recipe((PoleKind.ZERO, PoleKind.RING, PoleKind.ZERO), 1, 1, 3))
    factors = gramian_factors(system, frame, horizon)
    states = 6 if frame is Frame.REAL or dense else 3
    assert factors.controllability.shape == (states, states)
    assert factors.observability.shape == (states, states)
    assert hankel_singular_values(system, frame, horizon).shape == (states,)


@pytest.mark.parametrize(("n", "m", "p"), [(0, 2, 2), (3, 0, 2), (3, 2, 0)])
@pytest.mark.parametrize("dense", [False, True])
def test_empty_dimensions(n: int, m: int, p: int, dense: bool) -> None:
    a = torch.full((n,), 0.5, dtype=torch.complex128)
    b, c = torch.ones(n, m, dtype=torch.complex128), torch.ones(p, n, dtype=torch.complex128)
    system = StateSpace(torch.diag(a) if dense else a, b, c)
    for frame, states in ((Frame.REAL, 2 * n), (Frame.COMPLEX, n)):
        values = hankel_singular_values(system, frame)
        assert values.shape == (states,)
        assert float(values.sum()) == 0


def test_moment_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    x[:, 5] = 0
    x[:, 4] = x[:, 0]
    x = x * torch.tensor([1, 1e-4, 1e4, 1, 1, 1], dtype=torch.float64)
    moments = x.mT @ x / 500
    factor = moment_factor(moments)
    size = moments.diagonal().sqrt()
    assert float(((factor @ factor.mT - moments).abs() / (size[:, None] * size).clamp_min(1e-300)).max()) < 1e-12
    indefinite = torch.tensor([[1.0, 1 + 1e-12], [1 + 1e-12, 1.0]], dtype=torch.float64)
    assert bool(torch.isfinite(moment_factor(indefinite)).all())


def test_white_moments_converge_to_the_gramian() -> None:
    """What the empirical Gramian estimates: the state's second moment under white input."""
    system = ring_system(3, 2, 2, largest=0.95)
    real = realify(system)
    identity = StateSpace(real.a, real.b, torch.eye(6, dtype=torch.float64))
    u = torch.randn(40, 3000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states = identity.simulate(u)[:, 200:].reshape(-1, 6)
    moments = states.mT @ states / len(states)
    wanted = controllability_gramian(system)
    assert float((moments - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
