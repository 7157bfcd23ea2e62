"""Rotations and oscillators against the plain recurrences of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compressm.errors import ConfigError
from compressm.layers.oscillators import SMALLEST_ANGLE, DampedLinOSS, LinOSS, OscillatorLayer
from compressm.layers.rotations import RotationSSM


def oscillators(layer: OscillatorLayer, u: Tensor) -> Tensor:
    """The equations of the papers, step by step: velocity z and position y of every oscillator."""
    dt = torch.sigmoid(layer.step_size.double())
    a, force = layer.A.double(), u.double() @ layer.B.double().mT
    damping = layer.G.double().clamp(min=0) if isinstance(layer, DampedLinOSS) else torch.zeros_like(dt)
    implicit = isinstance(layer, LinOSS) and layer.discretization.value == "im"
    z = y = torch.zeros_like(force[:, 0])
    outputs = []
    for f in force.unbind(1):
        if implicit:  # z' = z + dt (-A y' + f), y' = y + dt z'
            z = (z - dt * a * y + dt * f) / (1 + dt**2 * a)
        else:  # z' = z + dt (-A y - G z' + f), y' = y + dt z'
            z = (z - dt * a * y + dt * f) / (1 + dt * damping)
        y = y + dt * z
        outputs.append(y @ layer.C.double().mT)
    return torch.stack(outputs, 1) + u.double() * layer.D.double()


def rotations(layer: RotationSSM, u: Tensor) -> Tensor:
    """x = A x + B u with the 2 x 2 blocks written out."""
    rho, theta = torch.exp(-layer.nu_log.double().exp()), layer.theta.double()
    cos, sin = rho * theta.cos(), rho * theta.sin()
    blocks = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    b = torch.stack([layer.B_1, layer.B_2], 1).double()  # (N, 2, H)
    c = torch.stack([layer.C_1, layer.C_2], -1).double()  # (H, N, 2)
    x = torch.zeros(len(u), layer.order, 2, dtype=torch.float64)
    outputs = []
    for v in u.double().unbind(1):
        x = torch.einsum("nij,bnj->bni", blocks, x) + torch.einsum("nih,bh->bni", b, v)
        outputs.append(torch.einsum("hni,bni->bh", c, x))
    return torch.stack(outputs, 1) + u.double() * layer.D.double()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


LAYERS = {
    "im": lambda: LinOSS(3, 8, discretization="im", generator=generator()),
    "imex": lambda: LinOSS(3, 8, discretization="imex", generator=generator()),
    "damped": lambda: DampedLinOSS(3, 8, generator=generator()),
    "rotations": lambda: RotationSSM(3, 8, generator=generator()),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_output_and_gradients_are_those_of_the_plain_loop(name: str, dtype: torch.dtype) -> None:
    layer, u = LAYERS[name]().to(dtype), torch.randn(2, 300, 3, generator=generator(), dtype=torch.float64).to(dtype)
    weights = torch.randn(2, 300, 3, generator=generator(), dtype=torch.float64)
    found = layer(u)
    (found.double() * weights).sum().backward()
    gradients = [p.grad.double().clone() for p in layer.parameters()]
    layer.zero_grad()
    wanted = (rotations if name == "rotations" else oscillators)(layer, u)
    (wanted * weights).sum().backward()
    tolerance = 1e-9 if dtype is torch.float64 else 1e-3
    torch.testing.assert_close(
        found.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.detach().abs().max())
    )
    for gradient, (label, p) in zip(gradients, layer.named_parameters(), strict=True):
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(gradient, p.grad.double(), rtol=tolerance, atol=tolerance * scale, msg=label)


@pytest.mark.parametrize("name", LAYERS)
def test_the_streaming_form_is_the_same(name: str) -> None:
    layer, u = LAYERS[name]().double(), torch.randn(2, 40, 3, generator=generator(), dtype=torch.float64)
    state, outputs = layer.initial_state(2), []
    for v in u.unbind(1):
        y, state = layer.step(v, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(u))


def test_where_the_poles_are() -> None:
    im, imex, damped = (LAYERS[name]().double().oscillation() for name in ("im", "imex", "damped"))
    radius = torch.exp(-im.nu)
    torch.testing.assert_close(radius**2, radius * im.theta.cos())  # |pole|^2 = Re(pole)
    assert (imex.nu == 0).all() and imex.theta.min() > 0
    assert (torch.exp(-damped.nu) > 0.9 - 1e-6).all() and (torch.exp(-damped.nu) < 0.999 + 1e-6).all()


@pytest.mark.parametrize("name", ["im", "imex", "damped"])
@pytest.mark.parametrize("value", [-5.0, 0.0, 1e9])
def test_poles_stay_a_stable_pair_whatever_the_parameters(name: str, value: float) -> None:
    layer = LAYERS[name]()
    with torch.no_grad():
        layer.A.fill_(value)
        if name == "damped":
            layer.G.fill_(value)
    nu, theta, _ = layer.oscillation()
    assert (nu >= 0).all() and (theta > 0.99 * SMALLEST_ANGLE).all() and (theta < math.pi - 0.99 * SMALLEST_ANGLE).all()
    y = layer(torch.randn(2, 2000, 3, generator=generator()))
    y.square().mean().backward()
    assert y.isfinite().all() and y.abs().max() < 1e4
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_imex_keeps_the_energy() -> None:
    layer = LAYERS["imex"]().double()
    u = torch.zeros(1, 4000, 3, dtype=torch.float64)
    u[:, 0] = 1
    y = layer(u)
    assert y[:, 3000:].abs().max() > 0.3 * y[:, 1:1000].abs().max()


@pytest.mark.parametrize("layer", [LinOSS, DampedLinOSS, RotationSSM])
def test_settings_that_cannot_be(layer: type) -> None:
    with pytest.raises(ConfigError, match="width is 0"):
        layer(0, 4)
    with pytest.raises(ConfigError, match="order is -1"):
        layer(2, -1)
    if layer is LinOSS:
        with pytest.raises(ConfigError, match=r"discretization is 'zoh'; wanted one of \['im', 'imex'\]"):
            LinOSS(2, 4, discretization="zoh")
    else:
        with pytest.raises(ConfigError, match=r"r_min is 0\.9 and r_max 0\.5"):
            layer(2, 4, r_max=0.5)
