from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import (
    Discretization,
    Frame,
    discretize,
    frame_states,
    in_frame,
    mirrored,
    realify,
    similarity,
    states_per_slot,
    strictly_causal,
    to_continuous,
)
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import PoleKind, Recipe, build_dense, build_diagonal, ring_system

OMEGA = torch.linspace(-3, 3, 25, dtype=torch.float64)


def same_map(first: StateSpace, second: StateSpace) -> bool:
    wanted = first.frequency_response(OMEGA)
    return torch.allclose(second.frequency_response(OMEGA), wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))


def test_realify_doubles_the_states_and_keeps_the_map() -> None:
    system = build_diagonal(Recipe((PoleKind.RING, PoleKind.NEGATIVE, PoleKind.ZERO), 2, 3, 1, feedthrough=True))
    real = realify(system)
    assert (real.order, real.is_complex, real.is_diagonal) == (6, False, False)
    assert same_map(system, real)
    u = torch.randn(2, 15, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(system.simulate(u), real.simulate(u), atol=1e-12)
    dense = build_dense(Recipe((PoleKind.RING,) * 3, 2, 2, 2, output="complex"))
    assert same_map(replace(dense, output="real"), realify(replace(dense, output="real")))
    assert torch.equal(realify(real).a, real.a)
    mixed = StateSpace(system.a, system.b, torch.ones(1, 3, dtype=torch.float64))
    assert same_map(mixed, realify(mixed))
    with pytest.raises(InvalidSystemError, match="output='complex'"):
        realify(replace(system, output="complex"))


def test_mirrored_is_diagonal_and_keeps_the_map() -> None:
    system = build_diagonal(Recipe((PoleKind.RING, PoleKind.NEGATIVE), 2, 3, 1, feedthrough=True, with_log=True))
    doubled = mirrored(system)
    assert (doubled.order, doubled.is_diagonal, doubled.output) == (4, True, "complex")
    assert doubled.log_a is not None
    assert same_map(system, doubled)
    for other in (replace(system, output="complex"), realify(system)):
        with pytest.raises(InvalidSystemError, match="real output"):
            mirrored(other)


def test_frames() -> None:
    system = ring_system(3, 1, 1)
    assert (frame_states(system, Frame.REAL), frame_states(system, Frame.COMPLEX)) == (6, 3)
    assert (states_per_slot(system, Frame.REAL), states_per_slot(system, Frame.COMPLEX)) == (2, 1)
    real = StateSpace(torch.full((3,), 0.5), torch.ones(3, 1), torch.ones(1, 3))
    assert (frame_states(real, Frame.REAL), states_per_slot(real, Frame.REAL)) == (3, 1)
    assert in_frame(replace(real, output="complex"), Frame.REAL).a.shape == (3, 3)
    assert in_frame(system, Frame.COMPLEX).a.shape == (3, 3)
    with pytest.raises(InvalidSystemError, match=r"Frame\.COMPLEX"):
        in_frame(replace(system, output="complex"), Frame.REAL)


@pytest.mark.parametrize("output", ["real", "complex"])
def test_similarity(output: str) -> None:
    system = build_diagonal(Recipe((PoleKind.RING,) * 4, 2, 2, 3, output=output))
    generator = torch.Generator().manual_seed(0)
    transform = torch.randn(4, 4, generator=generator, dtype=torch.complex128)
    assert same_map(system, similarity(system, transform))
    assert same_map(system, similarity(system, transform.real))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_strictly_causal(dense: bool, feedthrough: bool) -> None:
    """y_k = C' x_{k-1} + D' u_k: h_0 = D', h_l = C' A^{l-1} B."""
    recipe = Recipe((PoleKind.RING, PoleKind.ZERO, PoleKind.FAST), 2, 3, 4, feedthrough=feedthrough)
    system = (build_dense if dense else build_diagonal)(recipe)
    textbook = strictly_causal(system)
    markov = system.markov_parameters(6)
    assert torch.allclose(textbook.d, markov[0], atol=1e-13)
    plain = StateSpace(textbook.a, textbook.b, textbook.c)
    assert torch.allclose(plain.markov_parameters(5), markov[1:], atol=1e-13)
    with pytest.raises(InvalidSystemError, match="discretize"):
        strictly_causal(replace(system, sampling_time=0.0, log_a=None))


def test_strictly_causal_of_real_and_complex_matrices_together() -> None:
    generator = torch.Generator().manual_seed(0)
    a = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.complex128)
    b = torch.randn(3, 2, generator=generator, dtype=torch.complex128)
    c = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    system = StateSpace(a, b, c)
    textbook = strictly_causal(system)
    assert torch.allclose(textbook.d, (c.to(b.dtype) @ b).real)
    assert torch.allclose(textbook.c, c.to(a.dtype) @ a)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(Discretization), st.floats(1e-6, 0.5))
def test_to_continuous_undoes_discretize(seed: int, method: Discretization, step: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.complex(
        -(10 ** (3 * torch.rand(4, generator=generator, dtype=torch.float64) - 2)),
        3 * torch.randn(4, generator=generator, dtype=torch.float64),
    )
    ring = ring_system(4, 2, 2, seed=seed)
    system = StateSpace(a, ring.b, ring.c, sampling_time=0.0)
    discrete = discretize(system, step, method)
    assert discrete.is_stable()
    back = to_continuous(discrete, method)
    assert torch.allclose(back.a, a, rtol=1e-9, atol=1e-9 / step)
    assert torch.allclose(back.b, system.b, rtol=1e-6, atol=1e-9)
    assert back.sampling_time == 0


@pytest.mark.parametrize("method", list(Discretization))
def test_dense_and_diagonal_discretization_agree(method: Discretization) -> None:
    a = torch.tensor([-1 + 2j, -0.3, -20 - 1j, -1e-9], dtype=torch.complex128)
    ring = ring_system(4, 2, 2)
    diagonal = StateSpace(a, ring.b, ring.c, sampling_time=0.0)
    dense = replace(diagonal, a=torch.diag(a))
    first, second = discretize(diagonal, 0.1, method), discretize(dense, 0.1, method)
    assert torch.allclose(torch.diag(first.a), second.a, atol=1e-13)
    assert torch.allclose(first.b, second.b, rtol=1e-10, atol=1e-13)


def test_zero_order_hold_of_a_pole_near_zero_keeps_its_digits() -> None:
    a = torch.tensor([0.0, -1e-15, -1e-4, -1e-2], dtype=torch.float64)
    one = torch.ones(4, 1, dtype=torch.float64)
    found = discretize(StateSpace(a, one, one.mT, sampling_time=0.0), 1.0, Discretization.ZOH)
    wanted = torch.tensor([1.0, 1 - 5e-16, 1 - 5e-5 + 1e-8 / 6, 0.9950166250831893], dtype=torch.float64)
    assert torch.allclose(found.b.squeeze(), wanted, rtol=1e-12, atol=0)


def test_changes_of_time_that_do_not_exist_are_refused() -> None:
    discrete = ring_system(2, 1, 1)
    continuous = StateSpace(-torch.ones(2), torch.ones(2, 1), torch.ones(1, 2), sampling_time=0.0)
    with pytest.raises(InvalidSystemError, match="continuous system"):
        discretize(discrete, 0.1, Discretization.ZOH)
    with pytest.raises(InvalidSystemError, match="positive time"):
        discretize(continuous, 0.0, Discretization.ZOH)
    with pytest.raises(InvalidSystemError, match="discrete system"):
        to_continuous(continuous, Discretization.ZOH)
    with pytest.raises(InvalidSystemError, match="diagonal"):
        to_continuous(in_frame(discrete, Frame.COMPLEX), Discretization.ZOH)
    with pytest.raises(InvalidSystemError, match="pole at 0"):
        to_continuous(build_diagonal(Recipe((PoleKind.ZERO,))), Discretization.ZOH)
