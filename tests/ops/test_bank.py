"""Banks of systems against the plain loop, and their gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import InvalidSystemError
from compressm.layers.layout import Layout
from compressm.ops.bank import bank_lti, bank_reference
from compressm.ops.bank_response import bank_response
from compressm.ops.convolution import good_size


def bank(width, order, *, radius=(0.5, 0.999), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = radius
    nu = -torch.log(torch.rand(width, order, generator=generator, dtype=torch.float64) * (high - low) + low)
    theta = (torch.rand(width, order, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    w = torch.randn(2, width, order, generator=generator, dtype=torch.float64) * torch.sqrt(-torch.expm1(-2 * nu))
    return nu, theta, w[0].to(dtype), w[1].to(dtype)


@pytest.mark.parametrize(
    ("batch", "length", "width", "order"), [(2, 1, 3, 4), (3, 2, 1, 1), (2, 97, 5, 7), (1, 300, 4, 16), (2, 33, 3, 0)]
)
def test_against_the_loop(batch, length, width, order) -> None:
    parameters, u = bank(width, order), torch.randn(batch, length, width, dtype=torch.float64)
    wanted = bank_reference(*parameters, u)
    feed = torch.randn(width, dtype=torch.float64)
    arranged = Layout.CHANNELS.arrange(u)
    for blocks in (None, False, True):
        assert torch.allclose(bank_lti(*parameters, u, in_blocks=blocks), wanted, atol=1e-11)
        fed = bank_lti(*parameters, arranged, feedthrough=feed, in_blocks=blocks)
        assert torch.allclose(fed, wanted + feed * u, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 9, 3), (2, 0, 3)])
def test_empty_inputs_have_gradients(shape) -> None:
    parameters = [p.requires_grad_() for p in bank(3, 4)]
    for blocks in (False, True):
        u = torch.zeros(shape, dtype=torch.float64)
        y = bank_lti(*parameters, u, feedthrough=torch.zeros(3), in_blocks=blocks)
        assert y.shape == shape
        y.sum().backward()


@pytest.mark.parametrize("length", [1, 20, 37])
def test_gradients_are_those_of_finite_differences(length) -> None:
    parameters = [p.requires_grad_() for p in bank(2, 3)]
    u = torch.randn(2, length, 2, dtype=torch.float64, requires_grad=True)
    feed = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *p: bank_lti(*p[:-1], feedthrough=p[-1], in_blocks=False), (*parameters, u, feed)
    )


@pytest.mark.parametrize("length", [1, 64, 130])
def test_gradients_in_blocks_are_those_of_the_convolution(length) -> None:
    leaves = [p.requires_grad_() for p in (*bank(3, 4), torch.randn(2, length, 3, dtype=torch.float64))]
    weight = torch.randn(2, length, 3, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((bank_lti(*leaves, in_blocks=blocks) * weight).sum(), leaves) for blocks in (True, False)
    )
    assert all(torch.allclose(f, w, atol=1e-10) for f, w in zip(found, wanted, strict=True))


def test_channels_in_groups_are_those_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [p.requires_grad_() for p in (*bank(7, 3), torch.randn(2, 40, 7, dtype=torch.float64))]
    weight, found = torch.randn(2, 40, 7, dtype=torch.float64), []
    for channels in (7, 3):  # 3, 3 and 1: groups of one size, and the rest
        monkeypatch.setattr("compressm.ops.bank._GROUP_BYTES", channels * 2 * good_size(79) * 8)
        y = bank_lti(*leaves, in_blocks=False)
        found.append([y, *torch.autograd.grad(y, leaves, weight)])
    for whole, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-12, atol=1e-12)
    assert torch.allclose(found[1][0], bank_reference(*leaves), atol=1e-11)


def test_long_memory_in_single_precision() -> None:
    """Poles within 1e-6 of the unit circle over 20,000 steps: the phase of every lag is right."""
    nu = torch.tensor([[1e-6, 1e-5, 1e-4]], dtype=torch.float64)
    theta = torch.tensor([[0.5, 2.0, math.pi]], dtype=torch.float64)
    w = torch.ones(1, 3), torch.zeros(1, 3)
    lag = torch.arange(20_000, dtype=torch.float64)
    exact = (torch.exp(-nu * lag[:, None]) * torch.cos(theta * lag[:, None])).sum(-1)
    assert (bank_response(nu, theta, *w, 20_000)[0] - exact).abs().max() < 3e-6


@pytest.mark.parametrize("nu", [0.0, 30.0, 200.0, math.inf])
def test_poles_anywhere_in_the_disc(nu) -> None:
    values = torch.tensor([[nu, 0.1]], dtype=torch.float64, requires_grad=True)
    w = torch.ones(1, 2), torch.ones(1, 2)
    kernel = bank_response(values, torch.ones(1, 2), *w, 500)
    assert kernel[0, 0] == 2
    assert bool(kernel.isfinite().all())
    kernel.sum().backward()
    assert bool(values.grad[0, 1].isfinite())
    assert math.isinf(nu) or bool(values.grad.isfinite().all())


def test_shapes_that_do_not_fit_are_named() -> None:
    nu, theta, w_re, w_im = bank(3, 4)
    with pytest.raises(InvalidSystemError, match=r"u \(2, 9, 5\)"):
        bank_lti(nu, theta, w_re, w_im, torch.zeros(2, 9, 5))
    with pytest.raises(InvalidSystemError, match=r"feedthrough \(4,\)"):
        bank_lti(nu, theta, w_re, w_im, torch.zeros(2, 9, 3), feedthrough=torch.zeros(4))
