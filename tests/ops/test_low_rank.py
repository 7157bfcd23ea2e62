"""Responses of diagonal plus low-rank systems against the plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compressm.errors import ConfigError, InvalidSystemError
from compressm.layers import S4
from compressm.ops import dense_bank_response, low_rank_response
from compressm.ops.low_rank import squarings_are_faster


def system(channels: int, order: int, seed: int = 0) -> tuple[Tensor, ...]:
    """nu, theta and p, q, b, c; the matrix diag(exp(-nu + i theta)) - p q^T has a norm below 1."""
    generator = torch.Generator().manual_seed(seed)
    nu = 0.3 + torch.rand(channels, order, generator=generator, dtype=torch.float64)
    theta = (torch.rand(channels, order, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    p, q, b, c = torch.randn(4, channels, order, generator=generator, dtype=torch.complex128)
    p, q = (0.5 * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-9) for x in (p, q))
    return nu, theta, p, q, b, c


def loop(nu: Tensor, theta: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    pole, x, outputs = torch.polar(torch.exp(-nu), theta), b, []
    for _ in range(length):
        outputs.append((c * x).sum(-1).real)
        x = pole * x - p * (q * x).sum(-1, keepdim=True)
    return torch.stack(outputs, -1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 65, 500])
@pytest.mark.parametrize("order", [1, 6])
def test_values_and_gradients_are_those_of_the_loop(length, order) -> None:
    parameters = [x.requires_grad_() for x in system(3, order)]
    found, wanted = low_rank_response(*parameters, length), loop(*parameters, length)
    assert torch.allclose(found, wanted, atol=1e-13)
    weight = torch.randn(3, length, dtype=torch.float64)
    gradients = (torch.autograd.grad(k, parameters, weight, materialize_grads=True) for k in (found, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    parameters = [x.requires_grad_() for x in system(1, 2)]
    assert torch.autograd.gradcheck(lambda *s: low_rank_response(*s, 37), parameters)


def test_precisions_and_empty_systems() -> None:
    nu, theta, *weights = system(3, 6)
    wanted = low_rank_response(nu, theta, *weights, 200)
    single = low_rank_response(nu, theta, *(w.to(torch.complex64) for w in weights), 200)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), wanted, atol=1e-5)
    real = [w.real.clone().requires_grad_() for w in weights]
    found = low_rank_response(nu, theta, *real, 20)
    assert torch.allclose(found, loop(nu, theta, *(w.to(torch.complex128) for w in real), 20), atol=1e-13)
    assert all(g.dtype == torch.float64 for g in torch.autograd.grad(found.sum(), real))
    assert low_rank_response(nu, theta, *weights, 0).shape == (3, 0)
    assert torch.equal(low_rank_response(*system(3, 0), 5), torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-12), (10.0, 1e-8)])
@torch.no_grad()
def test_s4_over_a_long_sequence(scale, tolerance) -> None:
    """Both forms, at the start and where the low-rank part is a hundred times as large."""
    layer = S4(4, 32, generator=torch.Generator().manual_seed(0)).double()
    for p in (layer.P_re, layer.P_im):
        p.mul_(scale)
    (a, b, c), (nu, theta, p, q, _) = layer.sampled(), layer.sampled_low_rank()
    wanted = dense_bank_response(a, b, c, 3000)
    size = float(wanted.abs().max())
    assert torch.allclose(low_rank_response(nu, theta, p, q, b, c, 3000), wanted, atol=tolerance * size)
    single = dense_bank_response(a, b.to(torch.complex64), c.to(torch.complex64), 3000)
    assert torch.allclose(single.double(), wanted, atol=2e-5 * size)


@pytest.mark.parametrize(("order", "length", "squared"), [(5, 40, True), (24, 9, False)])
def test_s4_has_the_gradients_of_its_dense_matrices(order, length, squared) -> None:
    assert squarings_are_faster(order, length) == squared
    layer = S4(3, order, dt_min=0.01, dt_max=0.3, generator=torch.Generator().manual_seed(0)).double()
    u, weight = torch.randn(2, 3, length, 3, dtype=torch.float64)
    a, b, c = layer.sampled()
    x, outputs = b.new_zeros(3, *b.shape), []
    for k in range(length):
        x = torch.einsum("hij,bhj->bhi", a, x) + b * u[:, k, :, None]
        outputs.append((c * x).sum(-1).real + layer.D * u[:, k])
    y, wanted = layer(u), torch.stack(outputs, 1)
    assert torch.allclose(y, wanted, atol=1e-12)
    parameters = list(layer.parameters())
    gradients = (torch.autograd.grad((out * weight).sum(), parameters) for out in (y, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_what_does_not_fit_is_named() -> None:
    nu, theta, p, q, b, c = system(3, 6)
    with pytest.raises(InvalidSystemError, match=r"Wanted nu, theta, p, q, b, c \(H, N\); found .*q \(3, 5\)"):
        low_rank_response(nu, theta, p, q[:, :5], b, c, 9)
    with pytest.raises(InvalidSystemError, match=r"nu is of dtype torch\.complex128; wanted a tensor of real"):
        low_rank_response(p, theta, p, q, b, c, 9)
    with pytest.raises(ConfigError, match="length"):
        low_rank_response(nu, theta, p, q, b, c, -1)
