"""The same seed gives the same run, with cuts, a guard and data-loader workers that draw random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compressm import FixedOrder, Guard, InTrainingCompressor
from compressm.training import At

STEPS = 12


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Cases that are augmented with random numbers, drawn where they are made."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.full((6, 2), float(index)) / 24 + 0.1 * torch.randn(6, 2)
        return x, torch.tensor([random.random(), np.random.default_rng(index).random()], dtype=torch.float32)


def train(new_run: Callable[..., Any], seed: int, cuts: tuple[int, ...], workers: int) -> tuple[list[bytes], Any, Any]:
    """What was seen, the run, and its compressor."""
    run, seen = new_run(blocks=1, dropout=0.1), []
    random.seed(seed)
    torch.manual_seed(seed)
    guard = Guard(lambda: float(torch.rand(())), 2.0, higher_is_better=True, probe_after=2)
    compressor = InTrainingCompressor(
        run.model, run.optimizer, schedule=At(cuts), criteria=[FixedOrder(6), FixedOrder(4)], guard=guard
    )
    while len(seen) < STEPS:
        for x, y in DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers):
            run.optimizer.zero_grad()
            (run.model(x) - y).square().mean().backward()
            run.optimizer.step()
            compressor.step()
            seen.append(x.numpy().tobytes())
    return seen, run, compressor


def weights(run: Any) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in run.model.parameters()]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_run(new_run: Callable[..., Any], workers: int) -> None:
    (one, first, compressor), (two, second, _) = (train(new_run, 3, (4, 8), workers) for _ in range(2))
    assert one == two and len(set(one)) == STEPS
    assert weights(first) == weights(second) and compressor.orders() == {"blocks.0.ssm": 4}
    other, third, _ = train(new_run, 4, (4, 8), workers)
    assert not set(one) & set(other) and weights(first) != weights(third)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_cuts_and_probes_draw_no_random_numbers_of_the_run(new_run: Callable[..., Any], workers: int) -> None:
    """The metric of the guard draws some; the data are those of a run without cuts all the same."""
    cut, uncut = (train(new_run, 3, cuts, workers)[0] for cuts in ((4, 8), (1000,)))
    assert cut == uncut
