"""The processes of one run of the command line, as torchrun or another launcher of torch.distributed starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from compressm.training.compressor import InTrainingCompressor
from compressm.training.distributed.channel import Channel
from compressm.training.distributed.rank_states import RankStates
from compressm.training.history import Event
from compressm.training.loop import LoopObserver, LoopState, Moment, Scores

T = TypeVar("T")


class Team:
    """One process, or several under gloo. All methods are called by all processes at once."""

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel
        self.rank, self.size = (0, 1) if channel is None else (channel.rank, channel.size)

    def first(self, call: Callable[[], T]) -> T:
        """What `call` returns on rank 0, a plain value; its errors are raised on all."""
        return call() if self._channel is None else self._channel.from_first(call)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to train."""
        return model if self._channel is None else DistributedDataParallel(model)

    def total(self, values: list[float]) -> list[float]:
        """The sums over all processes."""
        if self._channel is None:
            return values
        return self._channel.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return self.total([value])[0] / self.size

    def agreed(self, value: float) -> float:
        """The value that rank 0 has."""
        return value if self._channel is None else float(self._channel.broadcast(value))

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.total([float(flag)])[0] > 0

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes rank 0's running statistics."""
        if self._channel is None:
            return
        values: dict[str, Any] = self._channel.broadcast(dict(model.named_buffers()) if self.rank == 0 else None)
        if self.rank != 0:
            for name, buffer in model.named_buffers():
                buffer.copy_(values[name])


@contextmanager
def joined() -> Iterator[Team]:
    """The processes that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); alone without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Team()
        return
    dist.init_process_group("gloo")
    yield Team(Channel(list(range(dist.get_world_size()))))
    dist.destroy_process_group()


class Listener(LoopObserver):
    """The observer of all ranks but the first: writes nothing, and gives rank 0 what it must save."""

    def __init__(self, compressor: InTrainingCompressor | None) -> None:
        self._compressor = compressor

    def stepped(self, step: int, loss: float) -> None:
        return

    def logged(self, step: int, loss: float, rate: float, seconds: float) -> None:
        return

    def evaluated(self, step: int, moment: Moment, scores: Scores) -> None:
        return

    def cutting(self, step: int) -> None:
        return

    def happened(self, step: int, event: Event) -> None:
        return

    def save(self, state: LoopState) -> None:
        if self._compressor is not None:
            RankStates.collect(self._compressor)
