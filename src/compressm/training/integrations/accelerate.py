"""Compression in a loop that Hugging Face Accelerate prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn
from torch.optim import Optimizer

from compressm.checkpoint.state_dicts import accept_cut_weights
from compressm.surgery.snapshot import Stateful
from compressm.training.compressor import InTrainingCompressor
from compressm.training.history import Cut, Event
from compressm.training.integrations.options import CompressorOptions, collected, go_on, trained
from compressm.training.integrations.packages import require
from compressm.training.integrations.reporting import (
    PICTURE,
    draw_spectra,
    event_metrics,
    last_cut,
    order_metrics,
    summary_metrics,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.tracking import TensorBoardTracker
else:
    accelerate = require("Accelerate", "accelerate", "accelerate")
    AcceleratedOptimizer = accelerate.optimizer.AcceleratedOptimizer
    TensorBoardTracker = accelerate.tracking.TensorBoardTracker


class AcceleratedCompressor:
    """Cuts the state space layers of a model in a loop of `Accelerator`.

    One object beside those that `prepare` returns::

        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
        compressor = AcceleratedCompressor(accelerator, model, optimizer, total_steps=10_000)
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss_function(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            compressor.step()

    Takes what `prepare` returned, and the arguments of `InTrainingCompressor`; the gradient scaler is the
    accelerator's. `step()` belongs after the optimizer's and the scheduler's step, in every iteration: those that only
    accumulate gradients do not count.

    * Logs to the accelerator's trackers, where something happened, the numbers of
      `compressm.training.integrations.reporting.event_metrics`, at the end what the run took, and to TensorBoard the
      Hankel singular values as a picture (with matplotlib installed).
    * It registers itself for checkpointing: `save_state` and `load_state` take the compressor along, and a model
      prepared at full size loads the weights of a cut one, as do `mirrors`.

    `compressor` is the `InTrainingCompressor`. Raises what that raises.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        scheduler: Stateful | Sequence[Stateful] = (),
        **options: Unpack[CompressorOptions],
    ) -> None:
        optimizers = optimizer if isinstance(optimizer, Sequence) else [optimizer]
        self.compressor = InTrainingCompressor(
            trained(model),
            [plain_optimizer(item) for item in optimizers],
            scheduler=scheduler,
            grad_scaler=accelerator.scaler,
            **options,
        )
        self._accelerator, self._options = accelerator, options
        models = (self.compressor.model, *options.get("mirrors", ()))
        self._accepting = [accept_cut_weights(each, options.get("adapters")) for each in models]
        accelerator.register_for_checkpointing(self)
        self._log(order_metrics(self.compressor.orders()))

    def step(self) -> tuple[Event, ...]:
        """Count an optimizer step, unless gradients were only accumulated, and do what is due after it."""
        if not self._accelerator.sync_gradients:
            return ()
        return self._told(self.compressor.step())

    def finish(self) -> tuple[Event, ...]:
        """Let the guard judge the last cut, tell what the run took, and take all hooks off the model."""
        events = self._told(self.compressor.finish())
        self._log(summary_metrics(self.compressor.summary()))
        while self._accepting:
            self._accepting.pop().remove()
        return events

    def state_dict(self) -> dict[str, Any]:
        """The compressor's state, for `save_state`, which all processes call."""
        return collected(self.compressor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, for `load_state`, which has loaded model and optimizers before."""
        go_on(self.compressor, state, self._options)

    def _told(self, events: tuple[Event, ...]) -> tuple[Event, ...]:
        if events:
            self._log(event_metrics(events, self.compressor))
            if (cut := last_cut(events)) is not None:
                self._picture(cut)
        return events

    def _log(self, metrics: dict[str, float]) -> None:
        self._accelerator.log(metrics, step=self._position())

    def _picture(self, cut: Cut) -> None:
        boards = [tracker for tracker in self._accelerator.trackers if isinstance(tracker, TensorBoardTracker)]
        if boards and self._accelerator.is_main_process and find_spec("matplotlib") is not None:
            for board in boards:
                board.writer.add_figure(PICTURE, draw_spectra(cut), self._position())

    def _position(self) -> int:
        """The optimizer steps made, those that a rollback took back included: loggers want numbers that grow."""
        return self.compressor.summary().steps


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps: what is inside an AcceleratedOptimizer."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
