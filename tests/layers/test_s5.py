"""S5: equations, initial poles, both samplings."""

from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import S5, DiagonalInit
from compressm.layers.hippo import initial_poles, legs, normal_legs
from compressm.ops import Sampling
from compressm.ops.sampling import sample


@pytest.mark.parametrize("rule", list(Sampling))
def test_sampling_against_its_equations(rule) -> None:
    generator = torch.Generator().manual_seed(0)
    decay, frequency, step = torch.rand(3, 50, generator=generator, dtype=torch.float64) + 0.01
    decay, frequency = decay * 3, frequency * 40 - 20
    s = torch.complex(-decay, frequency)
    z = s * step
    pole, gain = {
        Sampling.ZOH: (torch.exp(z), (torch.exp(z) - 1) / s),
        Sampling.BILINEAR: ((1 + z / 2) / (1 - z / 2), step / (1 - z / 2)),
    }[rule]
    found = sample(decay, frequency, step, rule)
    assert torch.allclose(torch.exp(torch.complex(-found.nu, found.theta)), pole, atol=1e-13)
    assert torch.allclose(torch.complex(found.gain_re, found.gain_im), gain, atol=1e-13)


@pytest.mark.parametrize("rule", list(Sampling))
def test_sampling_of_slow_poles_keeps_its_digits(rule) -> None:
    found = sample(torch.tensor(1e-14), torch.tensor(0.0), torch.tensor(1e-2), rule)
    assert math.isclose(found.nu.item(), 1e-16, rel_tol=1e-6)
    assert math.isclose(found.gain_re.item(), 1e-2, rel_tol=1e-6)


@pytest.mark.parametrize("rule", list(Sampling))
def test_sampling_has_right_gradients(rule) -> None:
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (([0.3, 2.0]), ([0.0, 9.0]), ([0.5]))]
    assert torch.autograd.gradcheck(lambda *v: tuple(sample(*v, rule)), values)


def test_sampling_a_pole_at_zero_has_finite_gradients() -> None:
    values = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (2.0, 0.0, 1.0)]
    found = sample(*values, Sampling.BILINEAR)
    assert found.nu.item() > 60
    sum(t.sum() for t in (torch.exp(-found.nu), *found[1:])).backward()
    assert all(bool(v.grad.isfinite().all()) for v in values)


def test_legs_has_the_poles_that_its_definition_gives() -> None:
    a, b, p = legs(12)
    assert torch.allclose(torch.linalg.eigvals(a).real.sort().values, -torch.arange(12, 0, -1.0).double(), atol=1e-4)
    assert a[3, 1] == -math.sqrt(7 * 3)
    assert torch.allclose(b.square(), torch.arange(1, 25, 2).double())
    frequency, vectors = normal_legs(6)
    normal = a + torch.outer(p, p)
    assert torch.allclose(normal.to(vectors.dtype) @ vectors, vectors * torch.complex(-0.5 + 0 * frequency, frequency))
    assert torch.allclose(vectors.mH @ vectors, torch.eye(6, dtype=vectors.dtype), atol=1e-12)


def test_inv_approximates_legs_and_lin_is_a_fourier_basis() -> None:
    wanted = initial_poles(DiagonalInit.LEGS, 64)[1].sort(descending=True).values
    found = initial_poles(DiagonalInit.INV, 64)[1]
    assert (found / wanted - 1).abs()[:8].max() < 0.1
    assert torch.allclose(initial_poles(DiagonalInit.LIN, 3)[1], torch.tensor([0, math.pi, 2 * math.pi]).double())


@pytest.mark.parametrize("rule", list(Sampling))
def test_s5_against_the_real_continuous_system(rule) -> None:
    """Simulated as a real system of 2 N states: the conjugate half that is not stored is written out."""
    layer, u = S5(3, 5, discretization=rule, dt_min=0.05, dt_max=0.3).double(), torch.randn(2, 30, 3).double()
    s = torch.complex(-layer.log_A_real.exp(), layer.A_imag)
    z = s * layer.log_step.exp()
    pole, gain = (torch.exp(z), (torch.exp(z) - 1) / s)
    if rule is Sampling.BILINEAR:
        pole, gain = (1 + z / 2) / (1 - z / 2), layer.log_step.exp() / (1 - z / 2)
    b, c = gain[:, None] * torch.complex(layer.B_re, layer.B_im), torch.complex(layer.C_re, layer.C_im)
    pole, b, c = torch.cat([pole, pole.conj()]), torch.cat([b, b.conj()]), torch.cat([c, c.conj()], 1)
    x, outputs = torch.zeros(2, 10, dtype=torch.complex128), []
    for k in range(30):
        x = pole * x + u[:, k].to(x.dtype) @ b.mT
        outputs.append(x @ c.mT)
    wanted = torch.stack(outputs, 1)
    assert wanted.imag.abs().max() < 1e-12
    assert torch.allclose(layer(u), wanted.real + layer.D * u, atol=1e-12)


def test_legs_input_and_output_are_those_of_the_real_system() -> None:
    """2 Re(C_n s^-1 B_n) of the stored halves is C0 (A + p p^T)^-1 B0 of the real HiPPO system."""
    layer = S5(3, 8, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    b0 = torch.randn(16, 3, generator=generator, dtype=torch.float64) / math.sqrt(3)
    c0 = torch.randn(3, 16, generator=generator, dtype=torch.float64) / math.sqrt(16)
    a, _, p = legs(16)
    wanted = c0 @ torch.linalg.solve(a + torch.outer(p, p), b0)
    s = torch.complex(-layer.log_A_real.double().exp(), layer.A_imag.double())
    b, c = torch.complex(layer.B_re, layer.B_im).to(s.dtype), torch.complex(layer.C_re, layer.C_im).to(s.dtype)
    assert torch.allclose(2 * (c / s @ b).real, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init": "hippo"}, r"S5: init is 'hippo'; wanted one of \['legs', 'inv', 'lin'\]"),
        ({"discretization": "euler"}, "S5: discretization is 'euler'"),
        ({"dt_min": 0.2}, "S5: dt_min is 0.2 and dt_max 0.1; wanted 0 < dt_min <= dt_max"),
        ({"dt_max": math.inf}, "dt_max is inf"),
    ],
)
def test_wrong_settings_are_named(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        S5(2, 4, **values)
