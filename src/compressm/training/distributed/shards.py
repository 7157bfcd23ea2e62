"""Processes that each keep a part of every parameter, under `torch.distributed.fsdp.fully_shard`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import final

from torch import nn
from torch.optim import Optimizer

from compressm.surgery.sharding import Sharding
from compressm.surgery.wrappers import require_plain
from compressm.training.distributed.joined import Joined


@final
class Shards(Joined):
    """The processes of a model under `fully_shard`: taken apart for a cut, and sharded again as it was.

    Meanwhile each process holds the whole model and its optimizer state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._sharding = model, Sharding(model)
        with self._sharding.whole(()):
            require_plain(model)
        super().__init__(self._sharding.ranks)

    @property
    def model(self) -> nn.Module:
        return self._model

    def whole(self, optimizers: Sequence[Optimizer]) -> AbstractContextManager[None]:
        return self._sharding.whole(optimizers)

    def resized(self) -> None:
        return  # leaving `whole` has sharded what the parameters have become
