"""The training batches of a run, of one size or growing, and the learning rate that goes with their size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from compressm.checks import read_record
from compressm.cli.config import TrainingConfig
from compressm.data.batching import Batch, Batcher, Place
from compressm.training.growing import GrowingBatch


class Feed:
    """Gives each step its batch."""

    def __init__(
        self,
        batcher: Batcher,
        model: nn.Module,
        optimizer: Optimizer,
        config: TrainingConfig,
        agreed: Callable[[float], float],
    ) -> None:
        """Batches of the configured size, or of one that grows from it; `agreed` gives all processes one number."""
        self._batcher, self._growing = batcher, None
        if config.growing_batch is not None:
            most = max(config.batch_size, min(config.growing_batch, batcher.dataset.train.cases))
            rule = config.growing_rate
            self._growing = GrowingBatch(
                model, optimizer, size=config.batch_size, maximum=most, rate=rule, agreed=agreed
            )

    def batch(self, step: int) -> Batch:
        """The batch of `step`; where batches grow, the one after the last."""
        return self._batcher.training(step) if self._growing is None else self._batcher.following(self._growing.size)

    def measured(self) -> AbstractContextManager[None]:
        """Around the forward pass of a training step."""
        return nullcontext() if self._growing is None else self._growing.measured()

    def rates(self, rate_at: Callable[[int], float]) -> Callable[[int], float]:
        """The factor on the learning rate, with that of the batch's size."""
        growing = self._growing
        return rate_at if growing is None else lambda step: rate_at(step) * growing.rate_factor

    def record(self) -> dict[str, int]:
        """What the record of a training step has of it: the batch size, where it grows."""
        return {} if self._growing is None else {"batch_size": self._growing.size}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the step: nothing but for batches that grow."""
        if self._growing is None:
            return {}
        return {"growing": self._growing.state_dict(), "place": asdict(self._batcher.place)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; ConfigError where it is damaged."""
        if self._growing is None:
            return
        place = read_record(Place, state.get("place"), "The place of the batches")
        self._growing.load_state_dict(state.get("growing", {}))
        self._batcher.place = place
