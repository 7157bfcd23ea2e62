"""The batches of a DataLoader as a function of a seed, so that a run can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError
from compressm.surgery.random_state import RandomState

T = TypeVar("T")


class SeededBatches(Generic[T]):
    """The batches of a DataLoader without end, epoch after epoch, to be saved and gone on with.

    Before epoch e the loader's generator is seeded from (seed, e) alone. The order of the cases follows from that; so
    does what data loader workers draw from PyTorch's, NumPy's and Python's generators, whose seeds PyTorch derives from
    it. A run that goes on in the middle of an epoch has the loader make the batches before that place again, workers
    included, and drops them; the global random states stay as they are meanwhile. So it is where making a batch raised
    an error: what comes next is that batch, not the one behind it::

        loader = DataLoader(data, 32, shuffle=True, num_workers=2, generator=torch.Generator())
        batches = SeededBatches(loader, seed=0)
        for x, y in itertools.islice(batches, steps): ...
        save_checkpoint(path, model, optimizer=optimizer, compressor=compressor, extra=batches.state_dict())
        batches.load_state_dict(load_checkpoint(path, model, optimizer=optimizer, compressor=compressor))

    On many processes give each a seed of its own and a DistributedSampler, whose `set_epoch` is called.

    Raises ConfigError, with the remedy, for a loader whose batches depend on more than its generator: without one, with
    a sampler of another, with `persistent_workers`, or with `in_order=False`.
    """

    def __init__(self, loader: DataLoader[T], seed: int) -> None:
        require_kind("loader", loader, DataLoader)
        require_integer("seed", seed, 0)
        sampler = loader.batch_sampler.sampler if isinstance(loader.batch_sampler, BatchSampler) else loader.sampler
        self._distributed = sampler if isinstance(sampler, DistributedSampler) else None
        drawing = isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
        for wrong, what, remedy in (
            (loader.generator is None, "no generator", "DataLoader(..., generator=torch.Generator())"),
            (
                drawing and sampler.generator is not loader.generator,
                "a sampler with another generator than its own",
                "give the sampler and the DataLoader the same torch.Generator()",
            ),
            (loader.persistent_workers, "workers that keep their random states", "persistent_workers=False"),
            (not getattr(loader, "in_order", True), "in_order=False", "in_order=True"),
        ):
            if wrong:
                raise ConfigError(f"The DataLoader has {what}, so that its batches cannot be made again. Use {remedy}.")
        self._loader, self._seed = loader, seed
        self._epoch, self._position = 0, 0
        self._iterator: Iterator[T] | None = None

    @property
    def epoch(self) -> int:
        """The number of the epoch (from 0) that the last batch was of."""
        return self._epoch

    def __iter__(self) -> SeededBatches[T]:
        return self

    def __next__(self) -> T:
        if self._iterator is None:
            self._iterator = self._begin()
        try:
            batch = next(self._iterator)
        except StopIteration:
            pass
        except BaseException:
            self._iterator = None  # the loader's own goes on behind the batch that it has not given
            raise
        else:
            self._position += 1
            return batch
        if self._position == 0:
            raise ConfigError("The DataLoader gives no batches; give it data, or leave out drop_last.")
        self._epoch, self._position, self._iterator = self._epoch + 1, 0, None
        return next(self)

    def state_dict(self) -> dict[str, int]:
        """The place reached, as plain numbers."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises ConfigError, with nothing changed, where it is damaged or of another seed.
        """
        require_kind("The state of the batches", state, Mapping)
        for name in ("seed", "epoch", "position"):
            require_integer(f"The batches' {name}", state.get(name), 0)
        if state["seed"] != self._seed:
            raise ConfigError(f"The saved batches have the seed {state['seed']}, these {self._seed}; give the same.")
        self._epoch, self._position, self._iterator = state["epoch"], state["position"], None

    def _begin(self) -> Iterator[T]:
        """The iterator of the present epoch, at the present position."""
        words = np.random.SeedSequence((self._seed, self._epoch)).generate_state(1, np.uint64)
        generator: torch.Generator = self._loader.generator  # pyright: ignore[reportAssignmentType]
        generator.manual_seed(int(words[0]) >> 1)
        if self._distributed is not None:
            self._distributed.set_epoch(self._epoch)
        iterator, before = iter(self._loader), RandomState.capture()
        try:
            for _ in range(self._position):
                if next(iterator, None) is None:
                    raise ConfigError(
                        f"Epoch {self._epoch} has fewer than {self._position} batches, where the saved run had that "
                        f"many. Give the data and the batch size of the saved run."
                    )
        finally:
            if self._position:
                before.restore()
        return iterator
