"""Writes down what a training loop tells: metrics, TensorBoard events, impulse responses, checkpoints, the bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressm.adapters.registry import find_layers
from compressm.checkpoint import save_checkpoint
from compressm.cli.feed import Feed
from compressm.cli.folder import RunFolder
from compressm.cli.metrics import MetricsFile
from compressm.cli.objective import Objective
from compressm.cli.responses import impulse_responses, pair_up, save_pairs
from compressm.training.compressor import InTrainingCompressor
from compressm.training.distributed.rank_states import RankStates
from compressm.training.history import Cut, Event, History
from compressm.training.loop import LoopObserver, LoopState, Moment, Scores
from compressm.training.state import times_from_state, times_to_state
from compressm.training.summary import PeakMemory, TrainingSummary, summarise

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_RESPONSE_STEPS = 256


class Recorder(LoopObserver):
    """The observer of a run in a run folder; everything it writes can be cut back to the last checkpoint."""

    def __init__(
        self,
        folder: RunFolder,
        metrics: MetricsFile,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compressor: InTrainingCompressor | None,
        objective: Objective,
        *,
        length: int,
        seconds: dict[str, Any] | None,
        feed: Feed,
        extra: dict[str, Any],
        keep: int,
        board: SummaryWriter | None,
        show: Callable[[int, str], None],
    ) -> None:
        """Record into `folder`; `length` is the data's longest sequence, `extra` goes into every checkpoint.

        `seconds` is what the checkpoint of an earlier process has under that name.
        """
        self._folder, self._metrics, self._objective = folder, metrics, objective
        self._model, self._optimizer, self._compressor = model, optimizer, compressor
        self._length, self._extra, self._keep = min(length, _RESPONSE_STEPS), extra, keep
        self._board, self._show, self._feed = board, show, feed
        self._responses: dict[str, NDArray[np.float64]] = {}
        self._metric: float | None = None
        self._clock, self._peak = times_from_state(seconds, History(layer_orders(model)))  # without a compressor

    def begin(self, state: LoopState) -> None:
        """The first record and the first checkpoint of a new run."""
        orders = layer_orders(self._model)
        self._metrics.append({"kind": "start", "step": 0, "orders": orders, "parameters": count(self._model)})
        self.save(state)

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._clock.enter(captured=False)
        metric = f"  {self._objective.metric} {self._objective.show(self._metric)}" if self._metric is not None else ""
        orders = ""
        if self._compressor is not None:
            orders = "  order " + ", ".join(str(order) for order in self._compressor.orders().values())
        self._show(step, f"loss {loss:.3f}{metric}{orders}")
        self._clock.leave()

    def logged(self, step: int, loss: float, rate: float, seconds: float) -> None:
        """A "train" record."""
        values = {"loss": loss, "lr": rate, "seconds_per_step": seconds, **self._feed.record()}
        self._metrics.append({"kind": "train", "step": step, **values})
        self._scalars(step, {f"train/{name}": value for name, value in values.items()})

    def evaluated(self, step: int, moment: Moment, scores: Scores) -> None:
        """An "evaluation" record."""
        self._clock.disturb()
        self._metrics.append({"kind": "evaluation", "step": step, "moment": moment.value, **scores})
        self._metric = scores[self._objective.metric]
        if moment is not Moment.BEFORE_CUT:  # one value a step
            self._scalars(step, {f"validation/{name}": value for name, value in scores.items()})

    def cutting(self, step: int) -> None:
        """Keep the impulse responses of the whole layers."""
        self._responses = impulse_responses(self._model, self._length)

    def happened(self, step: int, event: Event) -> None:
        """A record of the event's kind, with its report."""
        record = History({}, (event,)).to_dict()["events"][0]  # type: ignore[index]
        self._metrics.append({**record, "step": step, "parameters": count(self._model)})
        if isinstance(event, Cut):
            after = impulse_responses(self._model, self._length)
            save_pairs(self._folder.response_file(step), pair_up(self._responses, after))
            fitted = [layer for layer in event.report.layers if layer.fit_before is not None]
            for moment in ("before", "after"):
                name = f"fit_{moment}"
                self._scalars(step, {f"{name}/{layer.name}": getattr(layer, name) for layer in fitted})
        if self._compressor is not None:
            self._scalars(step, {f"order/{name}": float(order) for name, order in self._compressor.orders().items()})

    def save(self, state: LoopState) -> None:
        """A checkpoint that knows how long metrics.jsonl was."""
        self._clock.disturb()
        extra = {**self._extra, "loop": state.to_dict(), "metrics_bytes": self._metrics.sync()}
        if feed := self._feed.state_dict():
            extra["feed"] = feed
        if self._compressor is None:
            extra["seconds"] = times_to_state(self._clock, PeakMemory.now(torch.device("cpu")).or_more(self._peak))
        path = self._folder.checkpoint(state.step)
        path.parent.mkdir(exist_ok=True)
        states = None if self._compressor is None else RankStates.collect(self._compressor)
        alone = self._compressor is None or self._compressor.processes.size == 1
        save_checkpoint(path, self._model, optimizer=self._optimizer, compressor=states, extra=extra, rng=alone)
        self._folder.prune(self._keep)
        if self._board is not None:
            self._board.flush()

    def summary(self) -> TrainingSummary:
        """What the run took, of the compressor where there is one."""
        if self._compressor is not None:
            return self._compressor.summary()
        peak = PeakMemory.now(torch.device("cpu")).or_more(self._peak)
        return summarise(self._clock, History(layer_orders(self._model)), peak)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def layer_orders(model: nn.Module) -> dict[str, int]:
    """Each state space layer's order (stored states) by the layer's name."""
    return {layer.name: layer.adapter.read(layer.module).order for layer in find_layers(model)}


def count(model: nn.Module) -> int:
    """The number of trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
