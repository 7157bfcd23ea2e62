"""Batches as a pure function of (seed, step): a resumed run sees what the uninterrupted run would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressm.data.dataset import Dataset, Sequences, Split, Task

_EVALUATION_VALUES = 1 << 21
_EVALUATION_CASES = 1000


@dataclass(frozen=True)
class Batch:
    """Inputs `(B, L, channels)`, valid lengths `(B,)` or None where all are L, and targets
    `(B,)`, `(B, outputs)` or `(B, L, outputs)`.
    """

    x: Tensor
    lengths: Tensor | None
    y: Tensor


def steps_per_epoch(cases: int, batch_size: int) -> int:
    """How many full batches one pass over the data gives (at least one, which may be smaller than `batch_size`)."""
    return max(1, cases // batch_size)


def evaluation_batch(length: int, width: int) -> int:
    """How many sequences to evaluate at a time: at most 2^21 values of a layer's output, and at most 1,000 sequences.

    Larger batches leave the caches: on a CPU they take up to twice the time a sequence, and more memory.
    """
    return max(1, min(_EVALUATION_VALUES // (max(length, 1) * width), _EVALUATION_CASES))


def batch_indices(cases: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """The cases of batch `step` (from 0): epoch e goes through a permutation drawn from (seed, e) alone.

    The last cases of a permutation that do not fill a batch are left out in that epoch.
    """
    epoch, position = divmod(step, steps_per_epoch(cases, batch_size))
    return _order(cases, seed, epoch)[position * batch_size : (position + 1) * batch_size].copy()


@dataclass(frozen=True)
class Place:
    """Where the next batch begins: the epoch, and how many of its cases were taken."""

    epoch: int = 0
    taken: int = 0


def following_indices(cases: int, size: int, seed: int, place: Place) -> tuple[NDArray[np.int64], Place]:
    """The cases of the batch at `place`, and the place after it, for batches whose size changes.

    Batches of one size are those of `batch_indices`. A batch that the epoch has too few cases left for begins the next.
    """
    if place.taken > 0 and place.taken + size > cases:
        place = Place(place.epoch + 1)
    indices = _order(cases, seed, place.epoch)[place.taken : place.taken + size].copy()
    return indices, Place(place.epoch, place.taken + len(indices))


@lru_cache(maxsize=2)  # a new permutation of 55,000 cases for each step takes longer than the rest of its batch
def _order(cases: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(cases)


class Batcher:
    """Makes the batches of a data set."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Use `dataset` in batches of `batch_size`; `seed` fixes the order of the training cases.

        Of several processes each takes every `ranks`-th case of a training batch, from the `rank`-th on.
        """
        self.rank, self.ranks = rank, ranks
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.place = Place()
        self._cases = min(batch_size, dataset.train.cases)

    def training(self, step: int) -> Batch:
        """The training batch of `step` (from 0)."""
        indices = batch_indices(self.dataset.train.cases, self.batch_size, self.seed, step)
        return self._batch(self.dataset.train, indices[self.rank :: self.ranks])

    def following(self, size: int) -> Batch:
        """The training batch of `size` cases at `place`, which moves on behind it."""
        indices, self.place = following_indices(self.dataset.train.cases, size, self.seed, self.place)
        self._cases = len(indices)
        return self._batch(self.dataset.train, indices[self.rank :: self.ranks])

    @property
    def share(self) -> float:
        """The part of the last training batch that this process takes, times the number of processes."""
        return len(range(self.rank, self._cases, self.ranks)) * self.ranks / self._cases

    def in_order(self, split: Split, batch_size: int | None = None) -> Iterator[Batch]:
        """All cases of a split, in their order; the last batch may be smaller."""
        size = batch_size or self.batch_size
        for start in range(0, split.cases, size):
            yield self._batch(split, np.arange(start, min(start + size, split.cases)))

    def _batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        normalisation = self.dataset.normalisation
        if split.x.offsets is None:
            x, lengths = normalisation.apply(split.x.values[indices]), None
            if self.dataset.ragged:
                lengths = split.x.lengths[indices]
        else:
            x, lengths = _pad(split.x, indices, self.dataset)
        y = split.y[indices]
        if self.dataset.task is not Task.CLASSIFY and self.dataset.target_normalisation is not None:
            y = self.dataset.target_normalisation.apply(y)
        return Batch(_tensor(x), None if lengths is None else _tensor(lengths), _tensor(y))


def _pad(
    sequences: Sequences, indices: NDArray[np.int64], dataset: Dataset
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normalised sequences, filled with zeros after their ends, and their lengths."""
    offsets, lengths = sequences.offsets, sequences.lengths[indices]
    if offsets is None:
        raise TypeError("Only ragged sequences are padded.")
    x = np.zeros((len(indices), int(lengths.max()), sequences.channels), dtype=np.float32)
    for row, case in enumerate(indices):
        x[row, : lengths[row]] = dataset.normalisation.apply(sequences.values[offsets[case] : offsets[case + 1]])
    return x, lengths


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """A tensor in PyTorch's own memory: its alignment, which decides the order of sums in BLAS, is always the same."""
    return torch.from_numpy(np.ascontiguousarray(array)).clone()
