"""Real poles of the leading parts of a matrix, counted without decomposing them."""

from __future__ import annotations

import pytest
import torch

from compressm.linalg.real_poles import least_real_poles


@pytest.mark.parametrize("n", [2, 9, 40, 120])
@pytest.mark.parametrize("seed", range(5))
def test_counts_are_never_too_large_and_often_right(n: int, seed: int) -> None:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / n**0.5
    removed = min(8, n - 1)
    found = least_real_poles(*torch.linalg.eig(a), removed)
    wanted = [int((torch.linalg.eigvals(a[:k, :k]).imag == 0).sum()) for k in range(n - 1, n - removed - 1, -1)]
    assert all(f <= w for f, w in zip(found, wanted, strict=True))
    assert sum(f == w for f, w in zip(found, wanted, strict=True)) >= 0.5 * removed


def test_parts_with_real_poles_only() -> None:
    """Of a symmetric matrix: poles of each part lie between those of the larger one."""
    a = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert least_real_poles(*torch.linalg.eig(a + a.mT), 3) == pytest.approx([11, 10, 9], abs=3)
