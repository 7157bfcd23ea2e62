"""Compression inside a training loop, in two lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from compressm.adapters.registry import Adapters
from compressm.checks import brief, require_kind
from compressm.errors import CompressmError, ConfigError, DistributedError, SurgeryError
from compressm.reduction.criteria import Criterion
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings
from compressm.surgery.snapshot import Snapshot, Stateful
from compressm.training.clock import StepClock, Work
from compressm.training.compiled import drop_graphs
from compressm.training.guard import Guard
from compressm.training.history import Cut, Event, History, RolledBack, Skipped
from compressm.training.interrupts import held_interrupts
from compressm.training.plan import make_plan
from compressm.training.probe import Probe
from compressm.training.schedule import Schedule
from compressm.training.state import (
    VERSION,
    check_state,
    damage_told,
    probe_from_state,
    probe_to_state,
    times_from_state,
    times_to_state,
)
from compressm.training.summary import PeakMemory, TrainingSummary, summarise
from compressm.training.trained import Trained

_log = logging.getLogger(__name__)


class OnError(Enum):
    """What to do where a cut cannot be made (an unstable layer, weights that are not finite, ...)."""

    RAISE = "raise"
    SKIP = "skip"  # log a warning, record a `Skipped` event, leave the model as it is, go on


class InTrainingCompressor:
    """Cuts the state space layers of a model while it trains (Chahine et al. 2026, arXiv 2510.02823).

    In a plain loop::

        compressor = InTrainingCompressor(model, optimizer, total_steps=10_000)
        for x, y in batches:
            loss_function(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            compressor.step()

    `step()` belongs after the optimizer's step (and the scheduler's and gradient scaler's), before the next forward
    pass. It counts optimizer steps, captures the layers' inputs and output gradients in the `calibration_steps`
    steps before each cut, cuts, and runs the guard. Parameters are resized in place: the optimizer, its groups,
    schedulers and hooks stay the same objects.

    * `optimizer`: one or several; every one that holds parameters of the state space layers.
    * `schedule` says when to cut; with `total_steps` instead, the preset's own schedule for a run of that length.
    * `settings`: `CompressionSettings` or the name of a preset ("default", "paper", "data", "white").
    * `criteria`: the k-th cut uses the k-th of them, later cuts the last one; otherwise the settings' criterion.
    * `guard`: takes a cut back that made a metric worse; `scheduler` (one or several) and `grad_scaler` are then
      rolled back too. Data are not rewound.
    * `mirrors`: copies of the model that go through the same cuts and roll-backs, such as a
      `torch.optim.swa_utils.AveragedModel` (see `compressm.adapters.mirroring`).
    * `on_cut` is called with the `Cut` event after each cut, `on_error` says what happens where one cannot be made.

    On many processes give the DistributedDataParallel object, or the model under `fully_shard`, as `model`, and make,
    step and load the compressor on all of them: rank 0 decides on what all have captured, the others receive its cut
    (see `training.distributed`).

    Raises ConfigError for settings that contradict each other, AdapterError where the model has no layer to cut,
    SurgeryError where it is wrapped in anything else (FullyShardedDataParallel) or a mirror is no copy of it, and
    DistributedError where the processes' models or settings differ.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        total_steps: int | None = None,
        schedule: Schedule | None = None,
        settings: CompressionSettings | str | None = None,
        criteria: Sequence[Criterion] = (),
        guard: Guard | None = None,
        scheduler: Stateful | Sequence[Stateful] = (),
        grad_scaler: GradScaler | None = None,
        calibration_steps: int = 2,
        adapters: Adapters | None = None,
        on_cut: Callable[[Cut], None] | None = None,
        on_error: OnError = OnError.SKIP,
        mirrors: Sequence[nn.Module] = (),
    ) -> None:
        self.plan = make_plan(schedule, total_steps, settings, criteria, calibration_steps, guard)
        require_kind("on_error", on_error, OnError)
        if on_cut is not None and not callable(on_cut):
            raise ConfigError(f"on_cut is {brief(on_cut)}; wanted a function of the Cut, or None.")
        self._trained = Trained(model, optimizer, scheduler, grad_scaler, adapters, mirrors)
        self.model, self.processes = self._trained.model, self._trained.processes
        self._on_cut, self._on_error = on_cut, on_error
        self.history = History(self._trained.initial)
        self._clock, self._peak = StepClock(self.history.initial), PeakMemory()
        self._steps, self._stopped, self._closed = 0, False, False
        self._probe: Probe | None = None
        gradients = self.plan.settings.observability is GramianSource.LOSS
        self._calibration = self._trained.calibration(capture_gradients=gradients)
        self._check_processes()
        self._arrange_capture()

    @property
    def steps(self) -> int:
        """The number of optimizer steps counted; a rollback sets it back to the cut."""
        return self._steps

    @property
    def pending_probe(self) -> bool:
        """Whether the guard has yet to judge a cut."""
        return self._probe is not None

    def orders(self) -> dict[str, int]:
        """Each layer's present order (stored states) by the layer's name."""
        return self.history.last_orders()

    @property
    def cut_due(self) -> bool:
        """Whether the next call of `step` makes a cut (unless the guard takes the one before back)."""
        return not self._closed and not self._stopped and self.plan.schedule.is_cut(self._steps + 1)

    @contextmanager
    def not_capturing(self) -> Iterator[None]:
        """Forward passes inside, such as those of a validation, are not captured."""
        self._calibration.stop()
        try:
            yield
        finally:
            self._arrange_capture()
            self._clock.disturb()

    def whole(self) -> AbstractContextManager[None]:
        """Inside, model and optimizers are as on a single process, to be saved or loaded; called by all processes.

        That is so anyway, but for a model under `fully_shard`: its parameters and their optimizer state are gathered
        on every process, and sharded again at the end.
        """
        return self._trained.whole()

    def step(self) -> tuple[Event, ...]:
        """Count one optimizer step and do what is due after it; the events of this step, mostly none.

        A Ctrl-C that arrives meanwhile is delivered at the end, when everything is whole; a second one at once.
        Raises SurgeryError inside an optimizer's closure and after `close`; nothing was counted or changed then.
        """
        if self._closed:
            raise SurgeryError("This compressor was closed; make a new one to go on cutting.")
        self._trained.watch.require_outside()
        self._clock.enter(captured=self._calibration.started)
        with held_interrupts():
            self._steps += 1
            try:
                events = self._due()
            finally:
                self._arrange_capture()
                self._clock.leave()
        return events

    def summary(self) -> TrainingSummary:
        """Steps and step time at each size, the cost of cutting, the estimated saving, and peak memory, until now."""
        return summarise(self._clock, self.history, self._peak_memory())

    def finish(self) -> tuple[Event, ...]:
        """Let the guard judge a cut it has not judged yet, then close. A `with` block that ends well does this."""
        if self._closed:
            return ()
        with held_interrupts():
            try:
                return () if self._probe is None else self._judge(self._probe)
            finally:
                self.close()

    def close(self) -> None:
        """Remove every hook and drop captures and a pending probe; the model stays as it is."""
        if self._closed:
            return
        self._closed, self._probe = True, None
        self._calibration.stop()
        self._calibration.clear()
        self._trained.watch.close()
        self.processes.close()

    def state_dict(self) -> dict[str, Any]:
        """All it takes to go on exactly: nested dictionaries and lists of numbers, texts and tensors.

        Captures of the steps before a cut are included, and so is a pending probe's copy of model and optimizer.
        """
        return {
            "version": VERSION,
            "fingerprint": self.plan.fingerprint(),
            "steps": self._steps,
            "stopped": self._stopped,
            "history": self.history.to_dict(),
            "calibration": self._calibration.state_dict(),
            "probe": probe_to_state(self._probe),
            "seconds": times_to_state(self._clock, self._peak_memory()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; model and optimizers are loaded by `load_checkpoint`, before this.

        Raises ConfigError, naming what differs, where this compressor's settings or layers are others; nothing has
        changed then.
        """
        trained = self._trained
        check_state(state, self.plan, list(self.history.initial))
        with damage_told(), self.whole():
            history = History.from_dict(state["history"])
            probe = probe_from_state(state["probe"], trained.all, trained.optimizers, trained.restorable)
            clock, peak = times_from_state(state.get("seconds"), history)
            self._calibration.load_state_dict(state["calibration"])  # the last thing that can fail
        self._calibration.stop()
        self.history, self._probe, self._clock, self._peak = history, probe, clock, peak
        self._steps, self._stopped = state["steps"], state["stopped"]
        self._check_processes()
        trained.resized()
        self._arrange_capture()

    def __enter__(self) -> InTrainingCompressor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    def _due(self) -> tuple[Event, ...]:
        guard, probe, events = self.plan.guard, self._probe, ()
        if guard is not None and probe is not None and self._steps >= probe.cut.step + self.plan.probe_after:
            events = self._judge(probe)
        if not events and not self._stopped and self.plan.schedule.is_cut(self._steps):
            events = (self._cut(),)
        return events

    def _cut(self) -> Event:
        settings = self.plan.settings_at(self._steps)
        self._calibration.stop()
        try:
            self._check_processes()
            before, snapshot = self._before_cut()
            with self._clock.timing(Work.CUT):
                report = self._trained.cut(settings, self._calibration, self.history)
        except (CompressmError, torch.linalg.LinAlgError) as error:
            if self._on_error is OnError.RAISE or isinstance(error, ConfigError | DistributedError):
                raise
            skipped = Skipped(self._steps, str(error))
            self.history.add(skipped)
            self._tell(logging.WARNING, "%s", skipped)
            return skipped
        finally:
            self._calibration.clear()
        cut = Cut(self._steps, report)
        if snapshot is not None and cut.changed:
            self._probe = Probe(cut, before, snapshot, self.history.events)
        self.history.add(cut)
        if cut.changed:
            drop_graphs()
        self._clock.resize(self.orders())
        self._tell(logging.INFO, "%s (%.2f s)", cut, report.seconds)
        if self._on_cut is not None:
            self._on_cut(cut)
        return cut

    def _before_cut(self) -> tuple[float, Snapshot | None]:
        guard = self.plan.guard
        if guard is None:
            return 0.0, None
        with self._clock.timing(Work.GUARD):
            return self._trained.measure(guard), self._trained.snapshot()

    def _judge(self, probe: Probe) -> tuple[Event, ...]:
        guard = self.plan.guard
        if guard is None:
            return ()
        with self._clock.timing(Work.GUARD), self.not_capturing():
            after = self._trained.measure(guard)
        self._probe = None
        if not guard.refuses(probe.before, after):
            return ()
        with self._clock.timing(Work.GUARD):
            self._trained.restore(probe.snapshot)
        event = RolledBack(self._steps, probe.cut.step, probe.before, after, guard.allowed, probe.cut.report)
        self._steps = probe.cut.step
        self.history = History(self.history.initial, (*probe.events, event))
        self._clock.resize(self.orders())
        self._stopped = guard.stop_after_rollback
        self._calibration.stop()
        self._calibration.clear()
        self._tell(logging.WARNING, "%s", event)
        return (event,)

    def _peak_memory(self) -> PeakMemory:
        return self._trained.peak_memory().or_more(self._peak)

    def _check_processes(self) -> None:
        """Raise DistributedError, on every process, where they are not at the same point of the same run."""
        orders = [cut.report.orders() for cut in self.history.cuts]
        what = {
            "the plan": self.plan.fingerprint(),
            "on_error": self._on_error.value,
            "the step": self._steps,
            "the orders after each cut": orders,
        }
        self._trained.check(what)

    def _tell(self, level: int, text: str, *values: object) -> None:
        if self.processes.rank == 0:
            _log.log(level, text, *values)

    def _arrange_capture(self) -> None:
        if self._closed:
            return
        if not self._stopped and self.plan.captures_after(self._steps):
            self._calibration.start()
        else:
            self._calibration.stop()
