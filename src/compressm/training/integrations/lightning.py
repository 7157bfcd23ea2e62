"""Compression in Lightning, as one callback; for `lightning` and for `pytorch_lightning`."""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from compressm.checkpoint.state_dicts import accept_cut_weights
from compressm.surgery.random_state import RandomState
from compressm.training.compressor import InTrainingCompressor
from compressm.training.history import Cut, Event
from compressm.training.integrations.options import CompressorOptions, collected, go_on, trained, with_length
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
    import lightning.pytorch as pl
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
    from lightning.pytorch.plugins.precision import MixedPrecision
else:
    pl = require("Lightning", "lightning", "lightning.pytorch", "pytorch_lightning")
    Callback, TensorBoardLogger, WandbLogger = pl.Callback, pl.loggers.TensorBoardLogger, pl.loggers.WandbLogger
    MixedPrecision = pl.plugins.precision.MixedPrecision
    WeightAveraging = getattr(pl.callbacks, "WeightAveraging", ())  # since Lightning 2.6

_log = logging.getLogger(__name__)


class CompressionCallback(Callback):
    """Cuts the state space layers of a LightningModule while it trains.

    The user adds it to the trainer::

        trainer = lightning.Trainer(..., callbacks=[CompressionCallback()])

    Takes the arguments of `InTrainingCompressor` but for the model, optimizers, schedulers and gradient scaler, which
    it finds in the trainer; the length of the run is `trainer.estimated_stepping_batches` unless `total_steps` or
    `schedule` is given. A resumed run keeps its schedule unless `total_steps` gives it another; a run too short for the
    cuts of the preset (`fast_dev_run`) is not cut. Cuts come at the end of the batches that made an optimizer step.
    The averages of Lightning's `WeightAveraging` callbacks are cut with the model.

    * Logs to the trainer's loggers, where something happened, the numbers of
      `compressm.training.integrations.reporting.event_metrics`, and to TensorBoard and Weights & Biases the Hankel
      singular values as a picture (with matplotlib installed).
    * Checkpoints hold the compressor's state and the random states, which Lightning leaves out. `ckpt_path` restores
      a cut model on one built at full size, in `fit`, `validate`, `test` and `predict`; resumed from the end of an
      epoch, training goes on exactly. (Lightning itself does not return to the middle of an epoch's data.)

    `compressor` is the `InTrainingCompressor` once training has begun. Raises what that raises, at the beginning of
    training.
    """

    def __init__(self, **options: Unpack[CompressorOptions]) -> None:
        super().__init__()
        self.compressor: InTrainingCompressor | None = None
        self._options = options
        self._state: dict[str, Any] = {}
        self._accepting: list[RemovableHandle] = []
        self._seen, self._rank, self._fitting = 0, 0, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The model accepts the weights of a cut one: Lightning loads them before optimizers and callback state."""
        self._rank, self._fitting = trainer.global_rank, stage == "fit"
        self._stop_accepting()
        self._accepting = [
            accept_cut_weights(model, self._options.get("adapters")) for model in (pl_module, *_averages(trainer))
        ]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The model is as if the callback had not been there, but smaller."""
        self._stop_accepting()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the random states of a checkpoint back once more, unless the data were opened since, which draws."""
        if trainer.train_dataloader is None:
            self._restore_random()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the compressor: model, optimizers and schedulers are restored now."""
        state = self._state.get("compressor")
        if state is None and self.compressor is not None and trainer.global_step > 0:  # another `fit` of this trainer
            state = collected(self.compressor)
        steps = trainer.estimated_stepping_batches
        precision = trainer.precision_plugin
        known = int(steps) if math.isfinite(steps) and steps > 0 else None
        options: CompressorOptions = {**with_length(self._options, known, state)}
        options["mirrors"] = (*options.get("mirrors", ()), *_averages(trainer))
        self.compressor = InTrainingCompressor(
            trained(trainer.strategy.model or pl_module),
            trainer.optimizers,
            scheduler=[config.scheduler for config in trainer.lr_scheduler_configs],
            grad_scaler=precision.scaler if isinstance(precision, MixedPrecision) else None,
            **options,
        )
        if state is not None:
            now = RandomState.capture()  # put back in on_fit_start: opening the data has drawn from it since
            go_on(self.compressor, state, self._options)
            now.restore()
        elif trainer.global_step > 0:
            _log.warning("The checkpoint was saved without compression; its steps are not counted by the schedule.")
        self._state, self._seen = {}, trainer.global_step
        self._log(trainer, order_metrics(self.compressor.orders()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the optimizer step, if the batch made one, and do what is due."""
        if self.compressor is None or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._tell(trainer, self.compressor.step())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the guard judge the last cut, and tell what the run took."""
        if self.compressor is not None:
            self._tell(trainer, self.compressor.finish())
            self._log(trainer, summary_metrics(self.compressor.summary()))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off the model."""
        if self.compressor is not None:
            self.compressor.close()
        self._stop_accepting()

    def state_dict(self) -> dict[str, Any]:
        """The compressor's state and the random states."""
        if self.compressor is None:
            return self._state
        return {"compressor": collected(self.compressor), "random": RandomState.capture().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there are optimizers, and put the random states back.

        `configure_optimizers`, which is called next, may open the data (it does with `estimated_stepping_batches`).
        """
        self._state = state_dict
        if self._fitting:
            self._restore_random()

    def _restore_random(self) -> None:
        if "random" not in self._state:
            return
        ranks = self._state["compressor"].get("ranks", ())
        own = ranks[self._rank] if self._rank < len(ranks) else self._state
        RandomState.from_state_dict(own["random"]).restore()

    def _stop_accepting(self) -> None:
        while self._accepting:
            self._accepting.pop().remove()

    def _tell(self, trainer: pl.Trainer, events: tuple[Event, ...]) -> None:
        if self.compressor is None or not events:
            return
        self._log(trainer, event_metrics(events, self.compressor))
        cut = last_cut(events)
        if cut is not None and trainer.is_global_zero:
            _picture(trainer, cut)

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=_position(trainer))


def _averages(trainer: pl.Trainer) -> list[nn.Module]:
    """The averages of the weights that Lightning's own callbacks keep."""
    callbacks: list[Callback] = vars(trainer).get("callbacks", [])
    kept = [vars(c).get("_average_model") for c in callbacks if isinstance(c, WeightAveraging)]
    return [average for average in kept if isinstance(average, AveragedModel)]


def _picture(trainer: pl.Trainer, cut: Cut) -> None:
    """The picture of a cut for the loggers that take figures."""
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    tables = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not (boards or tables) or find_spec("matplotlib") is None:
        return
    figure, step = draw_spectra(cut), _position(trainer)
    for board in boards:
        board.experiment.add_figure(PICTURE, figure, step)
    for table in tables:
        table.log_image(PICTURE, [figure], step)


def _position(trainer: pl.Trainer) -> int:
    """Where Lightning's own loggers are: with several optimizers `global_step` counts the steps of each."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
