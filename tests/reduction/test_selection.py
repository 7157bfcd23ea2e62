from __future__ import annotations

import math

import pytest
import torch

from compressm.linalg.norms import h2_norm, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import Keep
from compressm.reduction.selection import ModalScore, ModalTruncation, modal_scores, reduce_by_selection, select_states
from compressm.testing.systems import PoleKind, Recipe, build_diagonal, ring_system


def test_scores_are_the_norms_of_single_modes() -> None:
    kinds = (PoleKind.RING, PoleKind.ZERO, PoleKind.NEGATIVE, PoleKind.SLOW)
    system = build_diagonal(Recipe(kinds, 3, 2, 1, output="complex"))
    peaks, energies = modal_scores(system), modal_scores(system, ModalScore.ENERGY)
    for i in range(4):
        alone = select_states(system, torch.tensor([i]))
        assert float(peaks[i]) == pytest.approx(hinf_norm(alone), rel=1e-9)
        assert float(energies[i]) == pytest.approx(h2_norm(alone), rel=1e-9)


def test_scores_of_slow_poles_come_from_the_logarithm() -> None:
    log_a = torch.tensor([-1e-13 + 1j], dtype=torch.complex128)
    one = torch.ones(1, 1, dtype=torch.complex128)
    system = StateSpace(torch.exp(log_a), one, one, log_a=log_a)
    assert float(modal_scores(system)) == pytest.approx(1e13, rel=1e-12)
    assert float(modal_scores(system, ModalScore.ENERGY)) == pytest.approx(math.sqrt(5e12), rel=1e-12)


def test_kept_states_are_sorted_and_seeded() -> None:
    system = ring_system(8, 2, 2)
    scores = modal_scores(system)
    largest, smallest = (ModalTruncation(keep=k).kept_states(system, 3) for k in (Keep.LARGEST, Keep.SMALLEST))
    assert set(largest.tolist()) == set(scores.argsort(descending=True)[:3].tolist())
    assert set(smallest.tolist()) == set(scores.argsort()[:3].tolist())
    assert largest.tolist() == sorted(largest.tolist())
    random = [ModalTruncation(keep=Keep.RANDOM, seed=s).kept_states(system, 3).tolist() for s in (0, 0, 1)]
    assert random[0] == random[1] == sorted(random[0])
    assert random[0] != random[2]


def test_reduction_by_selection_keeps_states_and_their_logarithms() -> None:
    system = ring_system(5, 2, 2)
    keep = torch.tensor([1, 4])
    reduction = reduce_by_selection(system, keep)
    assert reduction.order == 2
    assert reduction.real_order == 4
    assert torch.equal(reduction.system.a, system.a[keep])
    assert torch.equal(reduction.system.log_a, system.log_a[keep])
    assert torch.equal(reduction.keep, keep)
    assert torch.equal(reduction.restrict(system.b), reduction.system.b)
    assert torch.equal(reduction.embed.right(system.c), reduction.system.c)
