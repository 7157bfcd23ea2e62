from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import LRU, DenseSSM

LAYERS = [LRU, DenseSSM]


def test_initial_poles_fill_the_ring_evenly() -> None:
    layer = LRU(4, 20_000, r_min=0.5, r_max=0.9, max_phase=1.0, generator=torch.Generator().manual_seed(0))
    squared = torch.exp(-2 * layer.nu_log.double().exp())
    phase = layer.theta_log.double().exp()
    assert squared.min() >= 0.25 - 1e-6
    assert squared.max() <= 0.81 + 1e-6
    assert abs(squared.mean().item() - 0.53) < 0.005  # uniform between the squares
    assert abs(squared.std().item() - 0.56 / math.sqrt(12)) < 0.005
    assert phase.min() > 0
    assert phase.max() <= 1 + 1e-6
    assert abs(phase.mean().item() - 0.5) < 0.01


def test_initial_matrices_have_the_published_variances() -> None:
    layer = LRU(40, 1000, generator=torch.Generator().manual_seed(0))
    for parameter, variance in ((layer.B_re, 1 / 80), (layer.B_im, 1 / 80), (layer.C_re, 1e-3), (layer.C_im, 1e-3)):
        assert abs(parameter.mean().item()) < 0.02 * math.sqrt(variance)
        assert abs(parameter.var().item() / variance - 1) < 0.03
    modulus = torch.exp(-layer.nu_log.double().exp())
    assert torch.allclose(layer.gamma_log.double().exp(), torch.sqrt(1 - modulus**2), rtol=1e-4)
    assert all(not p.is_complex() and p.dtype == torch.float32 for p in layer.parameters())


def test_white_input_gives_states_and_outputs_of_order_one() -> None:
    layer = LRU(16, 256)
    y = layer(torch.randn(8, 4000, 16))[:, 2000:] - layer.D * 0
    assert 0.5 < y.std().item() < 3


def test_the_generator_decides_the_values() -> None:
    one, two, other = (LRU(3, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    for name, value in one.named_parameters():
        assert torch.equal(value, two.get_parameter(name))
        assert not torch.equal(value, other.get_parameter(name))


def test_lru_against_its_equations() -> None:
    layer, u = LRU(3, 6).double(), torch.randn(2, 40, 3, dtype=torch.float64)
    pole = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    b = layer.gamma_log.exp()[:, None] * torch.complex(layer.B_re, layer.B_im)
    x, outputs = torch.zeros(2, 6, dtype=torch.complex128), []
    for k in range(40):
        x = pole * x + u[:, k].to(x.dtype) @ b.mT
        outputs.append((x @ torch.complex(layer.C_re, layer.C_im).mT).real + layer.D * u[:, k])
    assert torch.allclose(layer(u), torch.stack(outputs, 1), atol=1e-12)


def test_dense_layer_against_its_equations() -> None:
    layer, u = DenseSSM(3, 6).double(), torch.randn(2, 40, 3, dtype=torch.float64)
    x, outputs = torch.zeros(2, 6, dtype=torch.float64), []
    for k in range(40):
        x = x @ layer.A.mT + u[:, k] @ layer.B.mT
        outputs.append(x @ layer.C.mT + u[:, k] @ layer.D.mT)
    assert torch.allclose(layer(u), torch.stack(outputs, 1), atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 6, 7])
def test_dense_layer_starts_stable(order) -> None:
    layer = DenseSSM(4, order)
    assert (layer.width, layer.order) == (4, order)
    assert torch.linalg.eigvals(layer.A).abs().amax() < 1 if order else layer.A.numel() == 0
    assert layer(torch.randn(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_parameter_gets_a_gradient(kind) -> None:
    layer = kind(4, 6)
    layer(torch.randn(3, 50, 4)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("order", [1, 3, 0])
def test_works_after_parameters_are_resized_in_place(kind, order, resize) -> None:
    layer, u = kind(4, 6), torch.randn(2, 30, 4)
    layer(u).sum().backward()
    layer.zero_grad()
    resize(layer, order)
    assert layer.order == order
    assert layer.width == 4
    y = layer(u)
    y.sum().backward()
    state, steps = layer.initial_state(2), []
    with torch.no_grad():
        for k in range(30):
            y_k, state = layer.step(u[:, k], state)
            steps.append(y_k)
    assert torch.allclose(torch.stack(steps, 1), y.detach(), atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_step_agrees_with_forward(kind) -> None:
    layer, u = kind(8, 32), torch.randn(4, 200, 8)
    state, outputs = layer.initial_state(4), []
    for k in range(200):
        y, state = layer.step(u[:, k], state)
        outputs.append(y)
    assert (torch.stack(outputs, 1) - layer(u)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(kind, dtype) -> None:
    layer, u = kind(4, 6), torch.randn(2, 30, 4)
    wanted = layer(u)
    layer, u = layer.to(dtype), u.to(dtype)
    y = layer(u)
    assert y.dtype == dtype
    assert torch.allclose(y.float(), wanted, atol=0.3 if dtype == torch.bfloat16 else 1e-4)
    y_k, _ = layer.step(u[:, 0], layer.initial_state(2))
    assert y_k.dtype == dtype
    assert torch.allclose(y_k, y[:, 0], atol=0.05)
    y.sum().backward()


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_masked_inputs_count_as_zero(kind) -> None:
    layer, u = kind(3, 5), torch.randn(2, 20, 3)
    mask = torch.arange(20) < torch.tensor([20, 7])[:, None]
    masked = layer(u, mask=mask)
    assert torch.allclose(masked[1, :7], layer(u[1:, :7])[0], atol=1e-6)
    assert torch.equal(masked, layer(torch.where(mask[..., None], u, 0.0)))


@pytest.mark.parametrize("kind", LAYERS)
def test_sizes_outside_their_range_are_refused(kind) -> None:
    with pytest.raises(ConfigError, match="width is 0; wanted an integer of 1 or more"):
        kind(0, 4)
    with pytest.raises(ConfigError, match="order is -1; wanted an integer of 0 or more"):
        kind(4, -1)
    with pytest.raises(ConfigError, match=r"r_min is 0.9 and r_max 1.0"):
        kind(4, 4, r_max=1.0)
    with pytest.raises(ConfigError, match="max_phase"):
        kind(4, 4, max_phase=7.0)
