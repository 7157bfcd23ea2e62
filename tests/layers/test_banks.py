"""S4D and DSS against their published equations."""

from __future__ import annotations

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import DSS, LSSL, S4, S4D, DSSKernel
from compressm.layers.hippo import diagonal_legs, legs
from compressm.layers.lssl import dissipative_matrix
from compressm.ops import Sampling


def impulse(layer: torch.nn.Module, length: int) -> torch.Tensor:
    u = torch.zeros(1, length, layer.width, dtype=torch.float64)
    u[0, 0] = 1
    return layer(u)[0].mT  # (H, L)


@pytest.mark.parametrize("rule", list(Sampling))
@torch.no_grad()
def test_s4d_kernel(rule) -> None:
    """2 Re(sum of C times the Vandermonde matrix): arXiv 2206.11893, eq. 5."""
    layer = S4D(3, 5, discretization=rule, dt_min=0.01, dt_max=0.3).double()
    s = torch.complex(-layer.log_A_real.exp(), layer.A_imag)
    dt = layer.log_dt.exp()[:, None]
    pole, gain = torch.exp(s * dt), (torch.exp(s * dt) - 1) / s
    if rule is Sampling.BILINEAR:
        pole, gain = (1 + s * dt / 2) / (1 - s * dt / 2), dt / (1 - s * dt / 2)
    weights = torch.complex(layer.C_re, layer.C_im) * gain
    wanted = 2 * (weights[..., None] * pole[..., None] ** torch.arange(40)).sum(1).real
    wanted[:, 0] += layer.D
    assert torch.allclose(impulse(layer, 40), wanted, atol=1e-12)


@pytest.mark.parametrize("kernel", list(DSSKernel))
@torch.no_grad()
def test_dss_kernel(kernel) -> None:
    """Proposition 1 of arXiv 2203.14343: (a) with e^{s d} - 1, (b) with the softmax over the length."""
    length = 40
    layer = DSS(3, 5, discretization=kernel, dt_min=0.01, dt_max=0.3, length=length).double()
    s = torch.complex(-layer.log_A_real.exp(), layer.A_imag)
    rows = s[:, None, None] * layer.log_dt.exp()[:, None] * torch.arange(length)  # (N, H, L)
    powers = torch.exp(rows)
    if kernel is DSSKernel.SOFTMAX:
        scaled = powers / powers.sum(-1, keepdim=True)
    else:
        scaled = powers * (torch.exp(s[:, None, None] * layer.log_dt.exp()[:, None]) - 1)
    wanted = torch.einsum("hn,nhl->hl", torch.complex(layer.C_re, layer.C_im) / s, scaled).real
    wanted[:, 0] += layer.D
    assert torch.allclose(impulse(layer, length), wanted, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 40, 64, 65])
@torch.no_grad()
def test_lssl_kernel(length) -> None:
    """C Ad^l Bd + D with the trapezoidal rule: arXiv 2110.13985, eqs. 2 and 3."""
    layer = LSSL(3, 6, dt_min=0.01, dt_max=0.3).double()
    layer.skew.add_(torch.randn_like(layer.skew))  # what is symmetric in it does not count
    eye = torch.eye(6, dtype=torch.float64)
    matrix = (layer.skew - layer.skew.mT) / 2 - torch.diag(layer.log_decay.exp())
    found = impulse(layer, length)
    for h, dt in enumerate(layer.log_dt.exp()):
        left = torch.linalg.inv(eye - dt / 2 * matrix)
        a, x = left @ (eye + dt / 2 * matrix), left @ (dt * layer.B)
        for k in range(length):
            assert torch.allclose(found[h, k], layer.C[h] @ x + (layer.D[h] if k == 0 else 0), atol=1e-11)
            x = a @ x


@torch.no_grad()
def test_lssl_is_hippo_legs_at_the_start() -> None:
    """B^T A^k B, which determine A and B up to a rotation; parameters are rounded to float32."""
    layer, (a, b, _) = LSSL(2, 8), legs(8)
    mine = dissipative_matrix(layer.skew.double(), layer.log_decay.double())
    x, y = b, layer.B.double()
    for _ in range(16):
        assert torch.allclose(layer.B.double() @ y, b @ x, rtol=2e-4)
        x, y = a @ x, mine @ y


@pytest.mark.parametrize("kind", [LSSL, S4])
def test_any_values_are_stable(kind) -> None:
    layer = kind(3, 6, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
            assert torch.linalg.matrix_norm(layer.sampled()[0], 2).max() <= 1


@torch.no_grad()
def test_s4_is_hippo_legs_at_the_start() -> None:
    """The kernel of the complex diagonal plus low-rank form is that of the real LegS matrix, C taken to its basis."""
    layer = S4(2, 8, dt_min=0.01, dt_max=0.3).double()
    a, b, _ = legs(8)
    eye = torch.eye(8, dtype=torch.float64)
    transform = diagonal_legs(8)[1]
    found = impulse(layer, 30)
    for h, dt in enumerate(layer.log_dt.exp()):
        left = torch.linalg.inv(eye - dt / 2 * a)
        step, x = left @ (eye + dt / 2 * a), left @ (dt * b)
        c = torch.complex(layer.C_re[h], layer.C_im[h]) @ transform.mH
        for k in range(30):
            wanted = (c @ x.to(c.dtype)).real + (layer.D[h] if k == 0 else 0)
            assert torch.allclose(found[h, k], wanted, atol=1e-5)  # the initial values are rounded to float32
            x = step @ x


@torch.no_grad()
def test_s4_without_low_rank_part_is_diagonal() -> None:
    layer, u = S4(3, 5, dt_min=0.01, dt_max=0.3).double(), torch.randn(2, 40, 3, dtype=torch.float64)
    for p in (layer.P_re, layer.P_im):
        p.zero_()
    wanted = layer(u)
    for p in (layer.P_re, layer.P_im):
        p.set_(p[:0].clone())
    assert layer.is_diagonal
    assert torch.allclose(layer(u), wanted, atol=1e-12)
    state, outputs = layer.initial_state(2), []
    for k in range(40):
        y, state = layer.step(u[:, k], state)
        outputs.append(y)
    assert torch.allclose(torch.stack(outputs, 1), wanted, atol=1e-12)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="DSS: length is 0; wanted an integer of 1 or more"):
        DSS(2, 4, length=0)
    with pytest.raises(ConfigError, match=r"DSS: discretization is 'zoh'; wanted one of \['exp', 'softmax'\]"):
        DSS(2, 4, discretization="zoh")
    with pytest.raises(ConfigError, match="S4D: init is 'random'"):
        S4D(2, 4, init="random")
