"""Long memories, poles at the edges, and gradients there."""

from __future__ import annotations

import pytest
import torch

from compressm.ops import Form, diagonal_lti, kernels_run, recurrence, use_kernels
from compressm.ops.response import impulse_response, powers

FAST = [Form.CONVOLUTION, Form.CHUNKED]


@pytest.mark.parametrize(
    ("form", "tolerance", "wide", "compiled"),
    [
        (Form.CONVOLUTION, 1e-6, 1, False),
        (Form.CHUNKED, 4e-6, 10**9, False),
        (Form.CHUNKED, 8e-6, 1, False),
        (Form.CHUNKED, 8e-6, 1, True),
        (Form.LANES, 8e-6, 1, True),
    ],
    ids=["convolution", "chunked in few calls", "chunked step by step", "chunked, compiled", "lanes"],
)
@pytest.mark.parametrize("length", [16_384, 65_536])
def test_long_sequence_with_poles_at_0_9999(
    make_system, signal, monkeypatch, form, tolerance, wide, compiled, length
) -> None:
    """float32 against float64, relative, with a memory of 10,000 steps, and the gradient of the input too.

    A step-by-step recurrence with rounded poles is off by 5e-5 here.
    """
    if compiled and not kernels_run():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(recurrence, "_WIDE", wide)
    parameters = make_system(16, 2, 2, radius=(0.9999, 0.9999))
    u, weight = signal(1, length, 2).requires_grad_(), signal(1, length, 2, seed=8)
    wanted = diagonal_lti(*parameters, u, form=Form.CONVOLUTION)
    (wanted_grad,) = torch.autograd.grad(wanted, u, weight)
    single, v = (*parameters[:2], *(t.float() for t in parameters[2:])), u.detach().float().requires_grad_()
    before = use_kernels(compiled)
    try:
        got = diagonal_lti(*single, v, form=form)
        (grad,) = torch.autograd.grad(got, v, weight.float())
    finally:
        use_kernels(before)
    assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert (grad - wanted_grad).norm() <= tolerance * wanted_grad.norm()


def test_the_two_fast_forms_agree_in_float64_on_a_long_sequence(make_system, signal) -> None:
    parameters, u = make_system(8, 2, 2, radius=(0.9999, 0.9999)), signal(2, 16384, 2)
    first, second = (diagonal_lti(*parameters, u, form=form) for form in FAST)
    assert (first - second).norm() <= 1e-10 * first.norm()


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("theta", [0.0, 1.0, torch.pi])
@pytest.mark.parametrize("nu", [torch.inf, 1e3, 60.0, 1e-12, 0.0])
def test_poles_at_the_edges(signal, form, nu, theta) -> None:
    """Poles at zero, so small that powers underflow, and on the unit circle: right values, finite gradients."""
    leaves = [torch.full((2,), v, dtype=torch.float64, requires_grad=True) for v in (nu, theta)]
    matrices = [signal(2, 2, seed=s) for s in range(4)]
    u = signal(2, 300, 2)
    wanted = diagonal_lti(*leaves, *matrices, u, form=Form.REFERENCE)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        y = diagonal_lti(*leaves, *(t.to(dtype) for t in matrices), u.to(dtype), form=form)
        assert (y - wanted).abs().max() <= tolerance * wanted.abs().max()
        for grad in torch.autograd.grad(y.square().sum(), leaves):
            assert torch.isfinite(grad).all()


def test_pole_at_zero_is_the_direct_term(signal) -> None:
    nu, theta = torch.full((3,), torch.inf), torch.zeros(3)
    b_re, b_im, c_re, c_im = (signal(3, 3, dtype=torch.float32, seed=s) for s in range(4))
    u = signal(2, 50, 3, dtype=torch.float32)
    direct = u @ (c_re @ b_re - c_im @ b_im).mT
    for form in (Form.REFERENCE, *FAST, *([Form.LANES] if kernels_run() else [])):
        assert torch.allclose(diagonal_lti(nu, theta, b_re, b_im, c_re, c_im, u, form=form), direct, atol=1e-5)


def test_powers_are_exact_to_the_last_bits() -> None:
    nu, theta = torch.tensor([1e-5, 0.1], dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    k = torch.tensor([0.0, 1.0, 16383.0], dtype=torch.float64)
    wanted = torch.exp(torch.complex(-nu, theta) * k[:, None])
    got = powers(nu, theta, k, torch.float32)
    assert got.dtype == torch.complex64
    assert (got - wanted).abs().max() <= 6e-8


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 257])
def test_impulse_response_against_its_definition(make_system, length) -> None:
    nu, theta, b_re, b_im, c_re, c_im = make_system(5, 3, 2)
    lags = torch.exp(torch.complex(-nu, theta) * torch.arange(length, dtype=torch.float64)[:, None])
    wanted = torch.einsum("on,ln,ni->iol", torch.complex(c_re, c_im), lags, torch.complex(b_re, b_im)).real
    got = impulse_response(nu, theta, b_re, b_im, c_re, c_im, length)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-13


def test_gradient_descends_to_a_known_pole(signal) -> None:
    """The gradient of the pole is usable where it matters: fitting one oscillator from a nearby start."""
    u = signal(4, 200, 1)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    target = torch.tensor([0.05], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    wanted = diagonal_lti(*target, one, zero, one, zero, u)
    nu = torch.tensor([0.055], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.995], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([nu, theta], lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (diagonal_lti(nu, theta, one, zero, one, zero, u) - wanted).square().mean().backward()
        optimizer.step()
    assert abs(nu.item() - 0.05) < 1e-3
    assert abs(theta.item() - 1.0) < 1e-3
