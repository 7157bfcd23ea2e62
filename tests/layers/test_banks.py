"""S4D and DSS against their published equations."""

from __future__ import annotations

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import DSS, S4D, DSSKernel
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


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="DSS: length is 0; wanted 1 or more"):
        DSS(2, 4, length=0)
    with pytest.raises(ConfigError, match=r"DSS: discretization is 'zoh'; wanted one of \['exp', 'softmax'\]"):
        DSS(2, 4, discretization="zoh")
    with pytest.raises(ConfigError, match="S4D: init is 'random'"):
        S4D(2, 4, init="random")
