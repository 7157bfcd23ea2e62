"""Compression in Hugging Face's Trainer, as one callback."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack, cast

from torch.optim import Optimizer

from compressm.checkpoint.state_dicts import accept_cut_weights
from compressm.errors import ConfigError
from compressm.surgery.snapshot import Stateful
from compressm.training.compressor import InTrainingCompressor
from compressm.training.history import Event
from compressm.training.integrations.accelerate import plain_optimizer
from compressm.training.integrations.options import CompressorOptions, collected, go_on, trained, with_length
from compressm.training.integrations.packages import require
from compressm.training.integrations.pretrained import write_sizes
from compressm.training.integrations.reporting import (
    PICTURE,
    draw_spectra,
    event_metrics,
    last_cut,
    order_metrics,
    summary_metrics,
)
from compressm.training.integrations.text import from_json_values, to_json_values

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_callback import ExportableState
else:
    transformers = require("Transformers", "hf", "transformers")
    PreTrainedConfig, TrainerCallback = transformers.PretrainedConfig, transformers.TrainerCallback
    TensorBoardCallback = transformers.integrations.TensorBoardCallback
    ExportableState = transformers.trainer_callback.ExportableState

_log = logging.getLogger(__name__)
_STATE = "compressor"


class CompressionCallback(TrainerCallback, ExportableState):
    """Cuts the state space layers of a model while a Trainer trains it.

    The user adds it to the trainer, before `train`::

        trainer.add_callback(CompressionCallback(trainer))

    Takes the arguments of `InTrainingCompressor` but for the model, optimizers, schedulers and gradient scaler, which
    it finds in the trainer; the length of the run is the trainer's `max_steps` unless `total_steps` or `schedule` is
    given. A resumed run keeps its schedule unless `total_steps` gives it another; a run too short for the cuts of the
    preset is not cut. Cuts come at the end of an optimizer step.

    * Logs through `trainer.log`, where something happened, the numbers of
      `compressm.training.integrations.reporting.event_metrics`, at the end what the run took, and to TensorBoard the
      Hankel singular values as a picture (with matplotlib installed).
    * The compressor's state is in `trainer_state.json`. `resume_from_checkpoint` restores a cut model on one built at
      full size and goes on exactly.
    * The sizes of the layers are in the model's config: see `compressm.training.integrations.pretrained`.

    A Trainer tells its callbacks nothing of an error in `train`: hooks stay until `close` is called, training begins
    anew, or the trainer is dropped.

    `compressor` is the `InTrainingCompressor` once training has begun. Raises what that raises, at the beginning of
    training, and ConfigError where the trainer has no model yet or makes its callbacks anew.
    """

    def __init__(self, trainer: Trainer, **options: Unpack[CompressorOptions]) -> None:
        if trainer.args.restore_callback_states_from_checkpoint:
            raise ConfigError(
                "The trainer would make this callback anew without its trainer; leave "
                "TrainingArguments.restore_callback_states_from_checkpoint False: compression goes on without it."
            )
        if trainer.model is None:
            raise ConfigError("The trainer has no model yet; give it one, not model_init alone.")
        self.compressor: InTrainingCompressor | None = None
        self._trainer, self._options = trainer, options
        self._collected: tuple[int, dict[str, Any]] = -1, {}
        self._accepting = accept_cut_weights(trainer.model, options.get("adapters"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the compressor: model, optimizer and scheduler are restored now."""
        self.close()
        trainer = self._trainer
        model, optimizer, scheduler = trainer.model_wrapped, trainer.optimizer, trainer.lr_scheduler
        if model is None or not isinstance(optimizer, Optimizer):
            raise ConfigError(f"The trainer's optimizer is a {type(optimizer).__name__}; wanted one of PyTorch's kind.")
        states = cast(dict[str, Any], state.stateful_callbacks)  # the trainer looks this callback up when it saves
        attributes = states.setdefault(type(self).__name__, self._described({}))["attributes"]
        saved = _read(attributes, state.global_step) if state.global_step > 0 else None
        self.compressor = InTrainingCompressor(
            trained(model),
            plain_optimizer(optimizer),
            scheduler=scheduler if isinstance(scheduler, Stateful) else (),
            grad_scaler=trainer.accelerator.scaler,
            **with_length(self._options, state.max_steps if state.max_steps > 0 else None, saved),
        )
        if saved is not None:
            go_on(self.compressor, saved, self._options)
        elif state.global_step > 0:
            _log.warning("The checkpoint was saved without compression; its steps are not counted by the schedule.")
        self._write_sizes()
        trainer.log(order_metrics(self.compressor.orders()))

    def close(self) -> None:
        """End what a run that raised an error has left: hooks, captures, and that compiled code runs uncompiled."""
        if self.compressor is not None:
            self.compressor.close()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the optimizer step and do what is due."""
        if self.compressor is not None:
            self._tell(self.compressor.step())
            self._collect(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare for a checkpoint at the end of an epoch."""
        self._collect(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the guard judge the last cut, unless the best model was loaded since, and tell what the run took."""
        if self.compressor is None:
            return
        if args.load_best_model_at_end:
            self.compressor.close()
            self._write_sizes()
        else:
            self._tell(self.compressor.finish())
        self._trainer.log(summary_metrics(self.compressor.summary()))

    def state(self) -> dict[str, Any]:
        """The compressor's state as JSON values; the trainer stores it with each checkpoint."""
        if self.compressor is None:
            return self._described({})
        at, state = self._collected
        if self.compressor.processes.size == 1:
            state = self.compressor.state_dict()
        elif at != self._trainer.state.global_step:
            _log.warning("This checkpoint was not foreseen: it holds what rank 0 has captured for the next cut alone.")
            state = self.compressor.state_dict()
        return self._described({_STATE: to_json_values(state)})

    @staticmethod
    def _described(attributes: dict[str, Any]) -> dict[str, Any]:
        return {"args": {}, "attributes": attributes}

    def _collect(self, control: TrainerControl) -> None:
        """Bring the state of all processes together where a checkpoint is due: only one of them is asked to save."""
        if self.compressor is None or self.compressor.processes.size == 1:
            return
        if control.should_save or control.should_evaluate:
            self._collected = self._trainer.state.global_step, collected(self.compressor)

    def _tell(self, events: tuple[Event, ...]) -> None:
        if self.compressor is None or not events:
            return
        self._write_sizes()
        self._trainer.log(event_metrics(events, self.compressor))
        cut = last_cut(events)
        boards = [c for c in self._trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
        if cut is not None and boards and find_spec("matplotlib") is not None:
            for board in boards:
                if board.tb_writer is not None:
                    board.tb_writer.add_figure(PICTURE, draw_spectra(cut), self._trainer.state.global_step)

    def _write_sizes(self) -> None:
        model = self._trainer.model
        config = None if model is None else getattr(model, "config", None)
        if model is not None and isinstance(config, PreTrainedConfig):
            write_sizes(model, config, self._options.get("adapters"))


def _read(attributes: dict[str, Any], step: int) -> dict[str, Any] | None:
    """The compressor's state in a checkpoint, None where there is none."""
    if _STATE not in attributes:
        return None
    return from_json_values(attributes[_STATE], f"The compressor's state of step {step} in trainer_state.json")
