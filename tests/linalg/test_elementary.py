"""Elementary functions against their definitions, where plain arithmetic would lose digits or time."""

from __future__ import annotations

import mpmath
import pytest
import torch

from compressm.linalg.elementary import all_finite, column_sizes, largest_part, pole_gaps, product


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_gaps_of_poles_known_by_their_logarithms_keep_their_digits() -> None:
    decay = torch.tensor([1e-15, 1e-12, 1e-6, 1e-2, 0.1, 3.0], dtype=torch.float64)
    angle = torch.tensor([0.5, 0.5, 0.5, 0.6, 2.0, 2.5], dtype=torch.float64)
    log_a = torch.complex(-decay, angle)
    gaps = pole_gaps(log_a.exp(), log_a.exp().conj(), (log_a, log_a.conj()))
    with mpmath.workdps(40):
        for i in range(6):
            for j in range(6):
                exact = 1 - mpmath.exp(mpmath.mpc(log_a[i].item()) + mpmath.conj(mpmath.mpc(log_a[j].item())))
                assert abs(mpmath.mpc(gaps[i, j].item()) - exact) <= 1e-14 * abs(exact)
    assert torch.equal(pole_gaps(log_a.exp(), log_a.exp(), None), 1 - log_a.exp()[:, None] * log_a.exp())


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 16, 17, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_products_of_real_and_complex_matrices(columns: int, turned: bool) -> None:
    real, other = random(7, 5, dtype=torch.float64), random(5, columns, seed=1)
    real, other = (real.mT.contiguous().mT, other.conj()) if turned else (real, other)
    assert torch.allclose(product(real, other), real.to(other.dtype) @ other, rtol=0, atol=1e-13)
    assert torch.allclose(product(other.mT, real.mT), other.mT @ real.mT.to(other.dtype), rtol=0, atol=1e-13)


def test_sizes_of_columns_and_of_the_largest_entry() -> None:
    x = random(6, 4)
    for t in (x, x.conj(), x.real):
        assert torch.allclose(column_sizes(t), torch.linalg.vector_norm(t, dim=0))
        assert largest_part(t) == float(torch.maximum(t.real.abs(), t.imag.abs() if t.is_complex() else t.abs()).max())
    assert largest_part(x[:0]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex128])
def test_a_sum_that_overflows_is_not_taken_for_infinite_entries(dtype: torch.dtype) -> None:
    x = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(x) and all_finite(x[:0])
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = x.clone()
        broken[3], broken[7] = bad, -bad
        assert not all_finite(broken)
