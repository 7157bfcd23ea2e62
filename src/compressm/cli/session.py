"""One training run from its start, or from its last checkpoint, to its report."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressm.checkpoint import load_checkpoint
from compressm.cli.arithmetic import arrange, read_cost_table, settled
from compressm.cli.build import (
    build_compressor,
    build_model,
    build_optimizer,
    build_rates,
    model_config,
    require_reachable_cuts,
)
from compressm.cli.closing import close
from compressm.cli.config import RunConfig
from compressm.cli.console import Terminal
from compressm.cli.feed import Feed
from compressm.cli.folder import RunFolder, first_sound
from compressm.cli.loading import load_data
from compressm.cli.lock import FolderLock
from compressm.cli.metrics import MetricsFile
from compressm.cli.note import RunNote
from compressm.cli.objective import Objective
from compressm.cli.parsing import Tree, flatten
from compressm.cli.recorder import Recorder
from compressm.cli.stopping import StopRequest
from compressm.cli.stored import KIND
from compressm.cli.team import Listener, Team
from compressm.data.batching import Batch, Batcher, evaluation_batch
from compressm.data.dataset import Dataset, Task
from compressm.errors import ConfigError, DataError
from compressm.training.distributed.rank_states import RankStates
from compressm.training.loop import LoopSettings, LoopState, fit

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Outcome:
    """A run's folder, what it reports, and whether it came to its end (else it was stopped and can be resumed)."""

    folder: RunFolder
    objective: Objective
    complete: bool


def start(config: RunConfig, path: Path | None, terminal: Terminal, team: Team) -> Outcome:
    """A new run in `path`."""
    require_reachable_cuts(config.compression, config.training.steps)
    table = read_cost_table(
        config.training.cost_table,
        "Give another file, or --set training.cost_table=null for the table that is shipped.",
    )
    absolute = os.path.abspath(config.data.path) if config.data.path is not None else None
    config = replace(settled(config), data=replace(config.data, path=absolute))
    arrange(config, table, terminal)
    dataset = _data(config, terminal, team)
    _require_enough(dataset)
    if min(config.training.batch_size, dataset.train.cases) < team.size:
        raise ConfigError(
            f"training.batch_size is {config.training.batch_size}: a batch has no case for each of the {team.size} "
            "processes. Raise it (--batch-size), or start fewer processes."
        )
    note = RunNote(dataset.fingerprint(), table)
    parts = _Parts(config, dataset, team)  # contradictions show before a folder is made
    if parts.compressor is not None:
        parts.compressor.close()
    folder = RunFolder(Path(team.first(lambda: str(RunFolder.create(path, config, note).path))))
    terminal.say(f"Run folder {folder.path}")
    return _locked(folder, config, dataset, terminal, team)


def resume(path: Path, terminal: Terminal, team: Team) -> Outcome:
    """Go on with the run in `path`, from its newest checkpoint."""
    folder = RunFolder.open(path)
    config, note = folder.config(), folder.note()
    arrange(config, note.table, terminal)
    dataset = _data(config, terminal, team)
    if dataset.fingerprint() != note.data:
        raise DataError(f"The data are not those that {path} was started with; restore them, or start a new run.")
    return _locked(folder, config, dataset, terminal, team)


def _data(config: RunConfig, terminal: Terminal, team: Team) -> Dataset:
    """The data of a run; where they must be downloaded, rank 0 does so before the others read them."""
    loaded: list[Dataset] = []

    def load() -> str:
        loaded.append(load_data(config.data, terminal))
        return loaded[0].fingerprint()

    fingerprint = team.first(load)
    dataset = loaded[0] if loaded else load_data(config.data, terminal)
    if team.size == 1:
        return dataset
    if dataset.task is Task.SEQUENCE:
        raise ConfigError(f"{dataset.name} predicts sequences of values, which is not done on many processes; use one.")
    if team.any(dataset.fingerprint() != fingerprint):
        raise DataError("The processes of this run do not read the same data; give all of them the same files.")
    return dataset


def _locked(folder: RunFolder, config: RunConfig, dataset: Dataset, terminal: Terminal, team: Team) -> Outcome:
    """Train while rank 0 holds the folder's lock."""
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(FolderLock(folder.path))

        team.first(lock)
        try:
            return Outcome(folder, Objective.of(dataset), _train(folder, config, dataset, terminal, team))
        except KeyboardInterrupt:
            if team.rank == 0:
                terminal.insist(folder.how_to_go_on)
            raise


class _Parts:
    """Model, optimizer, compressor and what belongs to them, as a configuration describes them."""

    def __init__(self, config: RunConfig, dataset: Dataset, team: Team) -> None:
        self.team = team
        self.batcher = Batcher(dataset, config.training.batch_size, config.training.seed, team.rank, team.size)
        self.objective = Objective.of(dataset)
        self.model_config = model_config(config, dataset)
        self.model = build_model(self.model_config, config.training.seed)
        self.optimizer = build_optimizer(self.model, config.training)
        self.feed = Feed(self.batcher, self.model, self.optimizer, config.training, team.agreed)
        self.dataset = dataset
        self.trained = team.wrap(self.model)
        if team.rank > 0:  # dropout of its own
            torch.manual_seed(config.training.seed + (team.rank << 32))
        self.compressor = build_compressor(self.trained, self.optimizer, config, self.objective, self.validate)

    def scores(self) -> dict[str, float]:
        """Metric and loss on the validation split."""
        split, team = self.dataset.validation, self.team
        size = min(
            evaluation_batch(self.dataset.max_length, self.model_config.width), -(-split.cases // team.size) or 1
        )
        team.share_buffers(self.model)
        batches = islice(self.batcher.in_order(split, size), team.rank, None, team.size)
        return self.objective.evaluate(self.model, batches, team.total)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of this process's share of a batch; the mean over all processes is that of the whole batch."""
        with self.feed.measured():
            loss = self.objective.loss(model, batch)
        return loss if self.team.size == 1 else loss * self.batcher.share

    def validate(self) -> float:
        """The metric on the validation split."""
        return self.scores()[self.objective.metric]


def _train(folder: RunFolder, config: RunConfig, dataset: Dataset, terminal: Terminal, team: Team) -> bool:
    parts = _Parts(config, dataset, team)
    state, length, seconds = LoopState(), 0, None
    saved = [Path(name) for name in team.first(lambda: [str(path) for path in folder.checkpoints()])]
    if saved:
        extra = _load_newest(folder, saved, parts, terminal)
        state, length, seconds = LoopState(**extra["loop"]), int(extra["metrics_bytes"]), extra.get("seconds")
        parts.feed.load_state_dict(extra.get("feed", {}))
        if team.rank == 0:
            _tell_of_changes(folder, extra.get("config", {}), config, terminal)
        terminal.say(f"Resuming at step {state.step} of {config.training.steps}")
    recorder: Recorder | None = None
    with ExitStack() as stack:
        if team.rank == 0:
            recorder = Recorder(
                folder,
                MetricsFile(folder.metrics, length),
                parts.model,
                parts.optimizer,
                parts.compressor,
                parts.objective,
                length=dataset.max_length,
                seconds=seconds,
                feed=parts.feed,
                extra={"kind": KIND, "model": parts.model_config.to_dict(), "config": flatten(config)},
                keep=config.output.keep,
                board=_board(folder, config, state.step, terminal),
                show=stack.enter_context(terminal.training(config.training.steps, state.step)),
            )
            stack.callback(recorder.close)
        observer = Listener(parts.compressor) if recorder is None else recorder
        if not saved and recorder is not None:
            recorder.begin(state)
        elif not saved:
            observer.save(state)
        stop = stack.enter_context(StopRequest())
        training = config.training
        state = fit(
            parts.trained,
            parts.optimizer,
            batch_at=parts.feed.batch,
            loss_of=parts.loss,
            evaluate=parts.scores,
            rate_at=parts.feed.rates(build_rates(training)),
            compressor=parts.compressor,
            settings=LoopSettings(
                training.steps, training.log_every, training.eval_every, config.output.checkpoint_every
            ),
            observer=observer,
            state=state,
            interrupted=lambda: team.any(stop.requested),
            mean_of=team.mean,
        )
    if state.step < config.training.steps:
        return False
    if recorder is not None:
        close(folder, config, dataset, recorder.summary(), terminal)
    return True


def _load_newest(folder: RunFolder, saved: list[Path], parts: _Parts, terminal: Terminal) -> dict[str, Any]:
    """Load the newest sound checkpoint; damaged newer ones are set aside, or pruning would keep them before others."""

    def load(path: Path) -> dict[str, Any]:
        states = None if parts.compressor is None else RankStates(parts.compressor)
        rng = None if parts.team.size == 1 else False
        return load_checkpoint(path, parts.model, optimizer=parts.optimizer, compressor=states, rng=rng)

    extra, used = first_sound(saved[::-1], load, terminal.warn)
    for damaged in saved[saved.index(used) + 1 :] if parts.team.rank == 0 else []:
        folder.set_aside(damaged)
    return extra


def _tell_of_changes(folder: RunFolder, stored: Tree, config: RunConfig, terminal: Terminal) -> None:
    """Warn where config.yaml was edited after the checkpoint was written."""
    present = flatten(config)
    changed = [
        f"{group}.{name} from {value!r} to {present[group][name]!r}"
        for group, values in stored.items()
        for name, value in values.items()
        if name in present.get(group, {}) and present[group][name] != value
    ]
    if changed:
        terminal.warn(
            f"{folder.config_file} was changed since the checkpoint was written: {', '.join(changed)}. The run goes on "
            "with the new values, and not as it would have without the change."
        )


def _require_enough(dataset: Dataset) -> None:
    if dataset.train.cases < 2:
        raise DataError(f"{dataset.name} has {dataset.train.cases} training cases; wanted at least 2.")


def _board(folder: RunFolder, config: RunConfig, step: int, terminal: Terminal) -> SummaryWriter | None:
    """A writer of TensorBoard events that hides what an earlier, killed process wrote after `step`."""
    if not config.output.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        terminal.say("TensorBoard is not installed: no events are written (pip install tensorboard).")
        return None
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1 if step else None)
