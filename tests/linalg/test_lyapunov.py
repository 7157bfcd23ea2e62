from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.errors import InvalidSystemError, UnstableSystemError
from compressm.linalg.elementary import complex_expm1
from compressm.linalg.lyapunov import (
    cascade_factor,
    cayley,
    cholesky_factor,
    compress_columns,
    pole_differences,
    stein_factor,
    stein_gaps,
)


def complex_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def poles(*shape: int, seed: int = 1, radius: float = 0.95) -> Tensor:
    z = complex_normal(*shape, seed=seed)
    return radius * z / z.abs().amax()


def closed(a: Tensor, g: Tensor) -> Tensor:
    return (g @ g.mH) / stein_gaps(a)


def relative_error(factor: Tensor, wanted: Tensor) -> float:
    size = wanted.diagonal(dim1=-2, dim2=-1).real.sqrt()
    scaled = (factor @ factor.mH - wanted) / (size.unsqueeze(-1) * size.unsqueeze(-2)).clamp_min(1e-300)
    return float(scaled.abs().max())


def test_expm1_of_small_and_large_arguments() -> None:
    z = torch.tensor([1e-20 + 1e-18j, 1e-9 - 1e-12j, -700 + 3j, 0j, -1e-16 + 2j * torch.pi], dtype=torch.complex128)
    found = complex_expm1(z)
    assert torch.allclose(found[:1], z[:1], rtol=1e-15, atol=0)
    assert complex(found[1]) == pytest.approx(complex(z[1] + z[1] ** 2 / 2), rel=1e-15)
    assert complex(found[2]) == pytest.approx(-1, abs=1e-300)
    assert complex(found[3]) == 0
    assert abs(complex(found[4]).real) < 1e-15


def test_gaps_and_differences_from_logarithms_keep_their_digits() -> None:
    gap = torch.tensor([1e-17, 3e-17, 1e-3], dtype=torch.float64)
    log_a = torch.complex(-gap, torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64))
    a = torch.exp(log_a)
    found = stein_gaps(a, log_a)
    assert torch.allclose(found.diagonal().real[:2], 2 * gap[:2], rtol=1e-15, atol=0)
    assert float(stein_gaps(a).diagonal().real[0]) == 0  # what a alone can tell
    assert complex(pole_differences(a, log_a)[0, 1]) == pytest.approx(2e-17 * complex(a[0]), rel=1e-12)
    rough = torch.tensor([0.0, 0.5], dtype=torch.complex128)  # log of a pole at 0 is not finite: fall back on a
    assert torch.equal(stein_gaps(rough, torch.log(rough)), stein_gaps(rough))
    assert torch.equal(pole_differences(rough, torch.log(rough)), pole_differences(rough))


@pytest.mark.parametrize("m", [1, 3, 9])
def test_cascade_equals_the_closed_form(m: int) -> None:
    a, g = poles(8), complex_normal(8, m)
    factor = cascade_factor(stein_gaps(a), pole_differences(a), g)
    assert relative_error(factor, closed(a, g)) < 1e-14
    assert torch.equal(factor, factor.tril())


def test_cascade_with_repeated_poles_and_zero_rows_finds_the_rank() -> None:
    """One input reaches one direction of a repeated pole."""
    a = torch.tensor([0.5 + 0.3j, 0.5 + 0.3j, 0.2, 0.5 + 0.3j, 0.9j], dtype=torch.complex128)
    g = complex_normal(5, 1)
    g[2] = 0
    factor = cascade_factor(stein_gaps(a), pole_differences(a), g)
    assert relative_error(factor[[0, 1, 3, 4]], closed(a, g)[[0, 1, 3, 4]][:, [0, 1, 3, 4]]) < 1e-14
    assert float(factor[2].abs().max()) == 0
    values = torch.linalg.svdvals(factor)
    assert float(values[1]) > 0.1
    assert float(values[2]) < 1e-15
    assert float((factor[[1, 3]] - g[[1, 3]] / g[0] * factor[0]).abs().max()) < 1e-15


def test_cascade_does_not_depend_on_the_scale_of_the_states() -> None:
    a, g = poles(6), complex_normal(6, 2)
    scale = torch.logspace(-150, 150, 6, dtype=torch.float64).unsqueeze(-1)
    gaps, differences = stein_gaps(a), pole_differences(a)
    assert torch.allclose(cascade_factor(gaps, differences, g * scale) / scale, cascade_factor(gaps, differences, g))


def test_cascade_of_a_batch_equals_a_loop() -> None:
    a, g = poles(3, 5), complex_normal(3, 5, 2)
    g[1, 2] = 0
    whole = cascade_factor(stein_gaps(a), pole_differences(a), g)
    for i in range(3):
        assert torch.allclose(whole[i], cascade_factor(stein_gaps(a[i]), pole_differences(a[i]), g[i]), atol=1e-15)


def test_cholesky_is_used_only_where_it_determines_all_digits() -> None:
    a, g = poles(6), complex_normal(6, 6)
    sound = closed(a, g)
    factor, accepted = cholesky_factor(sound)
    assert bool(accepted)
    assert relative_error(factor, sound) < 1e-14
    scale = torch.logspace(-8, 8, 6, dtype=torch.float64)
    scaled, accepted = cholesky_factor(sound * scale[:, None] * scale)
    assert bool(accepted)  # the scale of the states is no reason to refuse
    assert relative_error(scaled, sound * scale[:, None] * scale) < 1e-14
    nearly = a.clone()
    nearly[1] = nearly[0] + 1e-6
    single = complex_normal(6, 1)
    assert not bool(cholesky_factor(closed(nearly, single))[1])
    g[0] = 0
    assert not bool(cholesky_factor(closed(a, g))[1])
    assert not bool(cholesky_factor(torch.full((2, 2), float("nan"), dtype=torch.float64))[1])
    mixed = torch.stack([sound, closed(a, g), sound])  # each matrix of a batch is judged by itself
    factors, accepted = cholesky_factor(mixed)
    assert accepted.tolist() == [True, False, True]
    assert torch.equal(factors[0], factor)


@pytest.mark.parametrize("shape", [(), (4,), (3, 2)])
def test_stein_factor_of_diagonal_and_dense(shape: tuple[int, ...]) -> None:
    a, g = poles(*shape, 4), complex_normal(*shape, 4, 2)
    wanted = closed(a, g)
    assert relative_error(stein_factor(a, g), wanted) < 1e-13
    assert relative_error(stein_factor(torch.diag_embed(a), g), wanted) < 1e-13


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("batch", [(), (4,), (5,)])
def test_finite_horizon_equals_the_explicit_sum(horizon: int, batch: tuple[int, ...]) -> None:
    """A batch of n systems of order n is not one dense matrix."""
    a, g = poles(*batch, 4, radius=1.1), complex_normal(*batch, 4, 2)
    wanted = sum((a.unsqueeze(-1) ** k * g) @ (a.unsqueeze(-1) ** k * g).mH for k in range(horizon))
    assert relative_error(stein_factor(a, g, horizon), wanted) < 1e-12
    assert relative_error(stein_factor(torch.diag_embed(a), g, horizon), wanted) < 1e-12


def test_horizon_of_undamped_poles() -> None:
    """|a| = 1: the infinite sum does not exist; the diagonal of the finite one is L |b_i|^2."""
    a = torch.exp(1j * torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64))
    g = complex_normal(3, 2)
    factor = stein_factor(a, g, 1000)
    assert torch.allclose((factor @ factor.mH).diagonal().real, 1000 * g.abs().square().sum(-1), rtol=1e-12)
    with pytest.raises(UnstableSystemError, match="horizon"):
        stein_factor(a, g)
    for unstable in (1.5 * a, torch.diag(1.5 * a), torch.diag(a)):
        with pytest.raises(UnstableSystemError):
            stein_factor(unstable, g)
    with pytest.raises(InvalidSystemError, match="horizon is 0"):
        stein_factor(a, g, 0)


def test_stein_factor_of_nilpotent_and_zero_matrices() -> None:
    shift = torch.diag(torch.ones(3, dtype=torch.float64), -1)
    g = torch.zeros(4, 1, dtype=torch.float64)
    g[0] = 2
    factor = stein_factor(shift, g)
    assert torch.allclose(factor @ factor.mT, 4 * torch.eye(4, dtype=torch.float64))
    assert stein_factor(torch.zeros(4, 4, dtype=torch.float64), g).shape == (4, 1)
    assert stein_factor(shift, torch.zeros(4, 0, dtype=torch.float64)).shape == (4, 0)
    assert float(stein_factor(shift, torch.zeros(4, 2, dtype=torch.float64)).abs().max()) == 0


def test_compress_columns_keeps_the_product_and_small_rows() -> None:
    factor = complex_normal(3, 40) * torch.tensor([1e-30, 1.0, 1e30], dtype=torch.float64).unsqueeze(-1)
    small = compress_columns(factor)
    assert small.shape == (3, 3)
    assert relative_error(small, factor @ factor.mH) < 1e-14
    assert compress_columns(factor[:, :2]).shape == (3, 2)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_cayley_keeps_the_gramian(scale: float) -> None:
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    a = -scale * turn @ torch.diag(torch.tensor([1.0, 2, 5, 30, 200], dtype=torch.float64)) @ turn.mT
    g = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    discrete, drive = cayley(a, g)
    assert float(torch.linalg.eigvals(discrete).abs().max()) < 0.95  # few doublings, whatever the unit of time
    p = stein_factor(discrete, drive)
    p = p @ p.mT
    residual = a @ p + p @ a.mT + g @ g.mT
    assert float(residual.abs().max()) < 1e-12 * float((g @ g.mT).abs().max())
