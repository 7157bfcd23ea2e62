"""The pursuit against the plain greedy search, with a least-squares problem for each candidate."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressm.reduction.pursuit import Pursuit
from compressm.reduction.spans import RCOND, pseudo_inverse


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def left_over(target: Tensor, rows: Tensor) -> float:
    """The squared distance of the target's rows from the span."""
    fit = torch.linalg.lstsq(rows.T, target.T, driver="gelsd", rcond=RCOND).solution
    return float((target - fit.T @ rows).square().sum())


def greedy(targets: Tensor, bases: Tensor, count: int) -> list[int]:
    """What one keep-set for the systems (h, ...) takes, by definition."""
    chosen: list[int] = []
    sizes = targets.square().sum((-1, -2))
    while len(chosen) < count:
        free = [g for g in range(bases.shape[1]) if g not in chosen]

        def loss(group: int) -> float:
            rows = bases[:, [*chosen, group]].flatten(1, 2)
            return sum(left_over(t, r) / float(s) for t, r, s in zip(targets, rows, sizes, strict=True))

        chosen.append(min(free, key=loss))
    return chosen


@pytest.mark.parametrize(("rows", "outputs"), list(itertools.product((1, 2, 3), (1, 3))))
def test_groups_are_those_of_the_greedy_search(rows: int, outputs: int) -> None:
    targets, bases = random(3, outputs, 24), random(3, 8, rows, 24, seed=1)
    assert Pursuit(targets, bases, shared=True).first(5).tolist() == greedy(targets, bases, 5)
    own = Pursuit(targets, bases, shared=False)
    assert own.first(5).tolist() == [greedy(t[None], b[None], 5) for t, b in zip(targets, bases, strict=True)]
    assert own.first(3).tolist() == own.first(5)[:, :3].tolist()


def crowded(spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Eight groups of two rows, every second one beside the one before it, and a target that tells them apart."""
    bases = random(8, 2, 20, seed=seed)
    bases[1::2] = bases[::2] + spread * random(4, 2, 20, seed=seed + 1)
    weights = random(8, 2, seed=seed + 2) / spread
    weights[::2] -= weights[1::2]
    return torch.einsum("gq,gql->l", weights, bases)[None], bases


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_nearly_spanned_is_told_apart(spread: float, seed: int) -> None:
    target, bases = crowded(spread, seed)
    pursuit = Pursuit(target, bases, shared=False)
    assert pursuit.first(8).tolist()[:6] == greedy(target[None], bases[None], 6)
    basis = pursuit.basis(8)
    assert torch.allclose(basis @ basis.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
    rows = pursuit.rows(8)
    assert torch.allclose(rows @ basis.T @ basis, rows, rtol=0, atol=1e-12)
    assert torch.allclose((rows @ basis.T).triu(1), torch.zeros((), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("spread", [1e-6, 3e-7])
def test_at_the_edge_of_precision_the_choice_is_hardly_worse(spread: float) -> None:
    for seed in range(3):
        target, bases = crowded(spread, seed)
        chosen = Pursuit(target, bases, shared=False).first(5).tolist()
        whole = float(target.square().sum())
        found, best = (
            left_over(target, bases[c].flatten(0, 1)) for c in (chosen, greedy(target[None], bases[None], 5))
        )
        assert found <= best + 0.05 * whole


def test_rows_without_anything_of_their_own_have_no_gain_and_no_direction() -> None:
    bases = random(6, 2, 20)
    bases[1] = bases[0] + 1e-9 * random(2, 20, seed=1)  # spanned by another group, to below RCOND
    bases[2, 1] = bases[2, 0]  # by its own first row
    bases[3, 1] = 0.0
    target = random(2, 6, 2, seed=2).flatten(1) @ bases.flatten(0, 1)
    pursuit = Pursuit(target, bases, shared=False)
    chosen = pursuit.first(6).tolist()
    assert chosen[-1] in (0, 1) and sorted(chosen) == list(range(6))
    zero = (pursuit.basis(6) == 0).all(-1)
    places = [2 * chosen.index(g) + k for g, k in ((2, 1), (3, 1))] + [10, 11]
    assert sorted(zero.nonzero().flatten().tolist()) == sorted(places)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(-9, 0), st.integers(0, 3))
def test_the_pseudo_inverse_is_that_of_the_decomposition(seed: int, spread: float, still: int) -> None:
    """Well and badly conditioned ones in one batch, with rows that are zero."""
    bases = random(2, 5, 2, 16, seed=seed)
    bases[0, 1::2] = bases[0, :-1:2] + 10**spread * bases[0, 1::2]
    bases[:, :still, 1] = 0.0
    bases = torch.nn.functional.normalize(bases, dim=-1)
    pursuit = Pursuit(random(2, 1, 16, seed=seed + 1), bases, shared=False)
    rows = pursuit.rows(4)
    values = torch.linalg.svdvals(rows)
    if bool(((values / values[..., :1] - RCOND).abs() < 0.1 * RCOND).any()):
        return  # either is right
    (found,) = pseudo_inverse(rows, pursuit.basis(4))
    wanted = torch.linalg.pinv(rows, rtol=RCOND)
    sizes = torch.linalg.matrix_norm(wanted)
    assert bool((torch.linalg.matrix_norm(found - wanted) <= 1e-13 * sizes**2 + 1e-12 * sizes).all())
