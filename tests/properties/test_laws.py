"""Laws of Gramians, Hankel singular values and balancing, over generated systems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressm.linalg.balancing import balancing_projection, numerical_rank
from compressm.linalg.forms import Frame, in_frame, realify, similarity, strictly_causal
from compressm.linalg.gramians import controllability_gramian, dual, gramian_factors, observability_gramian
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.norms import difference, h2_norm, hinf_estimate, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.testing.strategies import (
    batches,
    continuous_systems,
    dense_systems,
    diagonal_systems,
    systems,
)
from compressm.testing.systems import rescale_states, unstack_systems


def frame_of(system: StateSpace) -> Frame:
    return Frame.COMPLEX if system.output == "complex" and system.is_complex else Frame.REAL


def scaled(gramian: Tensor, reference: Tensor) -> Tensor:
    """Entries relative to sqrt(P_ii P_jj) of the reference."""
    size = reference.diagonal(dim1=-2, dim2=-1).real.clamp_min(1e-300).sqrt()
    return gramian / size.unsqueeze(-1) / size.unsqueeze(-2)


def weight(system: StateSpace) -> float:
    """The largest |Lp_i| |Lq_i|: what round-off in Hankel singular values is relative to."""
    factors = gramian_factors(system, frame_of(system))
    return float((factors.controllability.norm(dim=-1) * factors.observability.norm(dim=-1)).max())


@settings(max_examples=150)
@given(systems(max_order=24))
def test_gramians_solve_their_equations(system: StateSpace) -> None:
    frame = frame_of(system)
    dense = in_frame(system, frame)
    p, q = controllability_gramian(system, frame), observability_gramian(system, frame)
    a, b, c = (t.to(torch.promote_types(dense.a.dtype, p.dtype)) for t in (dense.a, dense.b, dense.c))
    for gramian, residual in ((p, a @ p @ a.mH - p + b @ b.mH), (q, a.mH @ q @ a - q + c.mH @ c)):
        assert float((gramian - gramian.mH).abs().max()) == 0
        size = gramian.diagonal().real.clamp_min(0).sqrt()
        size = size[:, None] * size
        through = a.abs() @ size @ a.abs().mT if gramian is p else a.abs().mT @ size @ a.abs()
        assert bool((residual.abs() <= 1e-12 * (size + through)).all())


@settings(max_examples=100)
@given(systems(max_order=16))
def test_gramians_are_positive_semidefinite(system: StateSpace) -> None:
    frame = frame_of(system)
    for gramian in (controllability_gramian(system, frame), observability_gramian(system, frame)):
        assert float(torch.linalg.eigvalsh(scaled(gramian, gramian)).min()) >= -1e-12


@settings(max_examples=100)
@given(systems(max_order=16))
def test_hankel_singular_values_are_dual(system: StateSpace) -> None:
    frame = frame_of(system)
    first, second = hankel_singular_values(system, frame), hankel_singular_values(dual(system), frame)
    assert torch.allclose(first, second, rtol=1e-10, atol=1e-13 * weight(system))


@settings(max_examples=100)
@given(diagonal_systems(max_order=16), st.integers(0, 2**31))
def test_hankel_singular_values_do_not_depend_on_the_scale_of_the_states(system: StateSpace, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frame = frame_of(system)
    scale = 10 ** (8 * torch.rand(system.order, generator=generator, dtype=torch.float64) - 4)
    values, rescaled = hankel_singular_values(system, frame), rescale_states(system, scale)
    noise = 1e-13 * weight(system)
    assert torch.allclose(values, hankel_singular_values(rescaled, frame), rtol=1e-10, atol=noise)


@settings(max_examples=100)
@given(diagonal_systems(max_order=16, defects=False), st.integers(0, 2**31))
def test_hankel_singular_values_do_not_depend_on_the_states(system: StateSpace, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frame = frame_of(system)
    dense = in_frame(system, frame)
    mixed = torch.linalg.qr(torch.randn(dense.order, dense.order, generator=generator, dtype=torch.float64)).Q
    turned = rescale_states(similarity(dense, mixed), 10 ** torch.linspace(-4, 4, dense.order, dtype=torch.float64))
    values, found = hankel_singular_values(system, frame), hankel_singular_values(turned, frame)
    # a dense A cannot tell nearly equal poles apart, nor 1 - |a|^2 better than eps / (1 - |a|)
    assert torch.allclose(values, found, rtol=1e-9, atol=1e-10 * weight(system))


@settings(max_examples=100)
@given(diagonal_systems(max_order=12, defects=False))
def test_balanced_gramians_are_diagonal_and_equal(system: StateSpace) -> None:
    frame = frame_of(system)
    factors = gramian_factors(system, frame)
    spectrum = hankel_spectrum(factors)
    strong = int((spectrum.values > 1e-6 * spectrum.values[0]).sum())
    projection = balancing_projection(factors, spectrum, torch.arange(strong))
    w, v = projection.w, projection.v
    p, q = controllability_gramian(system, frame).to(w.dtype), observability_gramian(system, frame).to(w.dtype)
    sigma = spectrum.values[:strong]
    size = torch.sqrt(sigma[:, None] * sigma)
    for basis, gramian in ((w, p), (v, q)):
        noise = 1e-13 * basis.abs().mT @ gramian.abs() @ basis.abs()  # of forming the product below
        assert bool(((basis.mH @ gramian @ basis - torch.diag(sigma)).abs() <= 1e-9 * size + noise).all())
    assert bool(((w.mH @ v - torch.eye(strong)).abs() <= 1e-9 + 1e-13 * w.abs().mT @ v.abs()).all())


@settings(max_examples=100)
@given(diagonal_systems(max_order=10))
def test_the_numerical_rank_keeps_the_whole_map(system: StateSpace) -> None:
    """Balancing with all states, unreachable and unobservable ones removed, changes nothing."""
    frame = frame_of(system)
    factors = gramian_factors(system, frame)
    spectrum = hankel_spectrum(factors)
    rank = numerical_rank(spectrum.values)
    assume(rank > 0)
    full = in_frame(system, frame)
    whole = balancing_projection(factors, spectrum, torch.arange(rank)).apply(system, frame)
    if whole.is_stable():  # the last states are made of round-off; `reduce_diagonal` steps down then
        assert hinf_norm(difference(full, whole)) <= 1e-9 * max(hinf_norm(full), weight(system))


@settings(max_examples=100)
@given(diagonal_systems(max_order=8, defects=False), st.integers(1, 8), st.integers(0, 2**31))
def test_states_without_input_or_output_are_removed_at_no_cost(system: StateSpace, idle: int, seed: int) -> None:
    """Each idle state is unreachable or unobservable, and mixed into the others."""
    generator = torch.Generator().manual_seed(seed)
    frame = frame_of(system)
    n = system.order
    shape = (idle, system.inputs), (system.outputs, idle)
    b, c = (torch.randn(s, generator=generator, dtype=torch.float64).to(system.b.dtype) for s in shape)
    reachable = torch.rand(idle, generator=generator) < 0.5
    a = torch.cat([system.a, 0.9 * torch.rand(idle, generator=generator, dtype=torch.float64).to(system.a.dtype)])
    widened = StateSpace(
        a,
        torch.cat([system.b, b * reachable[:, None]]),
        torch.cat([system.c, c * ~reachable], -1),
        system.d,
        output=system.output,
    )
    values = hankel_singular_values(widened, frame)
    k = (2 if frame is Frame.REAL else 1) * n
    noise = weight(widened)
    assert torch.allclose(values[:k], hankel_singular_values(system, frame), rtol=1e-9, atol=1e-13 * noise)
    assert float(values[k:].max()) <= 1e-13 * noise


@pytest.mark.parametrize("dense", [False, True])
@settings(max_examples=60)
@given(st.data())
def test_a_batch_equals_a_loop(dense: bool, data: st.DataObject) -> None:
    batch = data.draw(batches(dense=dense))
    frame = frame_of(batch)
    each = unstack_systems(batch)
    values, horizon = hankel_singular_values(batch, frame), hankel_singular_values(batch, frame, horizon=37)
    response = batch.frequency_response(torch.linspace(0, 3, 7))
    markov = batch.markov_parameters(5)
    for i, system in enumerate(each):
        noise = 1e-12 * weight(system) + 1e-300
        assert torch.allclose(values[i], hankel_singular_values(system, frame), rtol=1e-9, atol=noise)
        assert torch.allclose(horizon[i], hankel_singular_values(system, frame, horizon=37), rtol=1e-9, atol=noise)
        assert torch.allclose(response[i], system.frequency_response(torch.linspace(0, 3, 7)), rtol=1e-9, atol=1e-9)
        assert torch.allclose(markov[i], system.markov_parameters(5), rtol=1e-9, atol=1e-9)
    assert h2_norm(batch) == pytest.approx(max(map(h2_norm, each)), rel=1e-9, abs=1e-12)
    assert hinf_norm(batch) == pytest.approx(max(map(hinf_norm, each)), rel=1e-6, abs=1e-12)


@settings(max_examples=100)
@given(diagonal_systems(max_order=8), st.integers(1, 70))
def test_a_finite_horizon_stops_the_sum(system: StateSpace, horizon: int) -> None:
    frame = frame_of(system)
    dense = in_frame(system, frame)
    x, explicit = (
        dense.b,
        torch.zeros(dense.order, dense.order, dtype=torch.promote_types(dense.a.dtype, dense.b.dtype)),
    )
    for _ in range(horizon):
        explicit = explicit + x @ x.mH
        x = dense.a @ x
    found = controllability_gramian(system, frame, horizon=horizon)
    assert bool((scaled(found - explicit, explicit + found).abs() <= 1e-12).all())


@settings(max_examples=100)
@given(st.data())
def test_continuous_gramians_solve_their_equations(data: st.DataObject) -> None:
    system = data.draw(continuous_systems(dense=data.draw(st.booleans())))
    frame = frame_of(system)
    dense = in_frame(system, frame)
    p = controllability_gramian(system, frame)
    a, b = (t.to(torch.promote_types(dense.a.dtype, p.dtype)) for t in (dense.a, dense.b))
    residual = a @ p + p @ a.mH + b @ b.mH
    size = p.diagonal().real.clamp_min(0).sqrt()
    allowed = 1e-10 * (a.abs() @ (size[:, None] * size))
    assert bool((residual.abs() <= allowed + allowed.mT + 1e-300).all())


@settings(max_examples=100)
@given(systems(max_order=10))
def test_norms_and_values_are_ordered(system: StateSpace) -> None:
    """sigma_1 <= |G|_inf <= 2 * sum + |D'|, the estimate is below the norm, and h2 <= sqrt(min(p, m)) |G|_inf."""
    frame = frame_of(system)
    shifted = in_frame(strictly_causal(system), frame)  # G = D' + z^-1 (rest): the Hankel operator is of the rest
    values = hankel_singular_values(shifted, frame)
    norm, estimate = hinf_norm(system), hinf_estimate(system)
    feed = 0.0 if shifted.d is None else float(torch.linalg.matrix_norm(shifted.d, ord=2))
    slack = 1e-9 * max(norm, weight(system))
    assert float(values[0]) <= norm + slack
    assert norm <= 2 * float(values.sum()) + feed + slack
    assert estimate <= norm * (1 + 1e-9) + slack
    assert estimate >= 0.97 * norm - slack
    assert h2_norm(system) <= min(system.inputs, system.outputs) ** 0.5 * norm * (1 + 1e-6) + slack


@settings(max_examples=60)
@given(diagonal_systems(max_order=12, outputs=("real",)))
def test_realify_keeps_the_map(system: StateSpace) -> None:
    omega = torch.linspace(-3, 3, 31, dtype=torch.float64)
    real = realify(system)
    assert not real.is_complex
    assert real.order == 2 * system.order
    scale = float(system.frequency_response(omega).abs().max()) + weight(system)
    assert torch.allclose(real.frequency_response(omega), system.frequency_response(omega), rtol=0, atol=1e-10 * scale)
    values, dense_values = hankel_singular_values(system), hankel_singular_values(real)
    assert torch.allclose(values, dense_values, rtol=1e-9, atol=1e-10 * weight(system))


@settings(max_examples=60)
@given(dense_systems(max_order=12))
def test_single_precision_loses_digits_but_not_the_values(system: StateSpace) -> None:
    """A system rounded to float32 has the Hankel singular values of a nearby system (Weyl)."""
    frame = frame_of(system)
    small = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    rounded = StateSpace(*(t.to(small[t.dtype]) for t in (system.a, system.b, system.c)), output=system.output)
    assume(rounded.to_double().spectral_radius() < 0.99 and system.spectral_radius() < 0.99)
    first, second = hankel_singular_values(system, frame), hankel_singular_values(rounded, frame)
    change = hinf_norm(difference(StateSpace(system.a, system.b, system.c, output=system.output), rounded))
    assert float((first - second).abs().max()) <= change * (1 + 1e-6) + 1e-12 * weight(system)
