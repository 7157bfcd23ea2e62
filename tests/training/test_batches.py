"""Batches that data loader workers make are the same again, from any place on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from compressm.checkpoint import load_checkpoint, save_checkpoint
from compressm.errors import ConfigError
from compressm.layers import ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, InTrainingCompressor, SeededBatches

CASES, BATCH, STEPS = 22, 4, 14


class Noisy(Dataset[Tensor]):
    """Cases with noise of each global generator."""

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> Tensor:
        case = torch.linspace(0, index + 1, 30).reshape(15, 2)
        return case + torch.randn(15, 2) + float(np.random.rand()) + random.random()


class Stream(IterableDataset[Tensor]):
    """Each worker gives five cases."""

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.randn(3) for _ in range(5))


def loader(workers: int, data: Any = None, **options: Any) -> DataLoader[Tensor]:
    options = {"shuffle": True, "generator": torch.Generator(), **options}
    return DataLoader(Noisy() if data is None else data, BATCH, num_workers=workers, **options)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make(workers: int) -> tuple[SequenceModel, torch.optim.Optimizer, InTrainingCompressor, SeededBatches[Tensor]]:
    seed_everything(0)
    model = SequenceModel(ModelConfig(inputs=2, outputs=3, width=4, order=8, blocks=1, dropout=0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    criteria = [FixedOrder(6), FixedOrder(4)]
    compressor = InTrainingCompressor(model, optimizer, schedule=At((4, 11)), criteria=criteria)
    return model, optimizer, compressor, SeededBatches(loader(workers), seed=3)


def train(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    compressor: InTrainingCompressor,
    batches: SeededBatches[Tensor],
    steps: int,
) -> list[float]:
    losses: list[float] = []
    for x in islice(batches, steps):
        loss = nn.functional.cross_entropy(model(x), (x[:, 0, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [3, 8])  # in the first epoch, between the captures of a cut; in the second
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, workers: int, at: int) -> None:
    whole = make(workers)
    expected = train(*whole, at)
    model, optimizer, compressor, batches = whole
    save_checkpoint(tmp_path, model, optimizer=optimizer, compressor=compressor, extra=batches.state_dict())
    expected = train(*whole, STEPS - at)

    again = make(workers)
    model, optimizer, compressor, batches = again
    seed_everything(99)
    batches.load_state_dict(load_checkpoint(tmp_path, model, optimizer=optimizer, compressor=compressor))
    assert train(*again, STEPS - at) == expected
    assert compressor.orders() == whole[2].orders() == dict.fromkeys(compressor.orders(), 4)
    assert batches.epoch == STEPS // 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole[0].parameters(), strict=True))


@pytest.mark.parametrize("data", [Noisy(), Stream()])
def test_workers_draw_by_the_seed_alone(data: Any) -> None:
    def batches(seed: int, state: int) -> list[Tensor]:
        seed_everything(state)
        options = {} if isinstance(data, Noisy) else {"shuffle": None}
        return list(islice(SeededBatches(loader(2, data, **options), seed), 8))

    first, same, other = batches(3, 0), batches(3, 1), batches(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(a, b) for k, a in enumerate(first) for b in first[:k])  # nor do epochs or workers repeat


class Failing(Dataset[int]):
    """One case cannot be read at first."""

    def __init__(self, case: int) -> None:
        self.case, self.fails = case, True

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> int:
        if index == self.case and self.fails:
            self.fails = False
            raise OSError("no answer")
        return index


def test_a_batch_that_could_not_be_made_comes_next() -> None:
    order = [int(case) for batch in islice(SeededBatches(loader(0, range(CASES)), 3), 5) for case in batch]
    batches = SeededBatches(loader(0, Failing(order[9])), 3)  # in the third batch
    found = [int(case) for batch in islice(batches, 2) for case in batch]
    with pytest.raises(OSError, match="no answer"):
        next(batches)
    assert batches.state_dict()["position"] == 2
    assert found + [int(case) for batch in islice(batches, 3) for case in batch] == order
    assert batches.state_dict()["position"] == 5


def test_going_on_leaves_the_global_random_states_as_they_are() -> None:
    seed_everything(5)
    for _ in range(BATCH):
        Noisy()[0]
    expected = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    batches = SeededBatches(loader(0), seed=3)
    batches.load_state_dict({"seed": 3, "epoch": 1, "position": 4})
    seed_everything(5)
    next(batches)  # after four that are made again
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (random.getstate(), np.random.get_state()[2]) == expected[1:]


def test_a_distributed_sampler_shuffles_each_epoch() -> None:
    data = TensorDataset(torch.arange(24))
    shares = []
    for rank in range(2):
        sampler = DistributedSampler(data, 2, rank, seed=1)
        batches = SeededBatches(DataLoader(data, 4, sampler=sampler, generator=torch.Generator()), seed=rank)
        shares.append([torch.cat([next(batches)[0] for _ in range(3)]) for _ in range(2)])
    for epoch in range(2):
        assert sorted(torch.cat([share[epoch] for share in shares]).tolist()) == list(range(24))
    assert not torch.equal(shares[0][0], shares[0][1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"generator": None}, "no generator"),
        ({"shuffle": None, "sampler": RandomSampler(range(CASES))}, "another generator"),
        ({"num_workers": 1, "persistent_workers": True}, "persistent_workers=False"),
        ({"num_workers": 1, "in_order": False}, "in_order=True"),
    ],
)
def test_a_loader_that_cannot_be_repeated_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SeededBatches(DataLoader(Noisy(), BATCH, **{"shuffle": True, "generator": torch.Generator(), **options}), 0)


def test_a_state_that_does_not_fit_is_refused() -> None:
    batches = SeededBatches(loader(0), seed=3)
    for state, said in (
        ({"seed": 4, "epoch": 0, "position": 0}, "have the seed 4, these 3"),
        ({"seed": 3, "epoch": -1, "position": 0}, "epoch is -1"),
        ({"seed": 3, "epoch": 0}, "position is None"),
        ([], "wanted Mapping"),
    ):
        with pytest.raises(ConfigError, match=said):
            batches.load_state_dict(state)
    assert batches.state_dict() == {"seed": 3, "epoch": 0, "position": 0}
    batches.load_state_dict({"seed": 3, "epoch": 0, "position": 7})
    with pytest.raises(ConfigError, match="fewer than 7 batches"):
        next(batches)
    with pytest.raises(ConfigError, match="no batches"):
        next(SeededBatches(DataLoader(Noisy(), 50, drop_last=True, generator=torch.Generator()), 0))
