"""What is trained: the model, and all that a cut or a roll-back changes with it, on one or several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from compressm.adapters.calibration import MAX_TOKENS, Calibration
from compressm.adapters.registry import Adapters
from compressm.analysis import read_system
from compressm.checks import require_each, require_kind
from compressm.compress import compress_
from compressm.reduction.report import CompressionReport
from compressm.settings import CompressionSettings
from compressm.surgery.snapshot import Snapshot, Stateful
from compressm.training.compiled import drop_graphs
from compressm.training.guard import Guard
from compressm.training.history import History
from compressm.training.processes import processes_of
from compressm.training.summary import PeakMemory
from compressm.training.targets import require_layers, require_mirrors, require_their_optimizer
from compressm.training.watch import StepWatch


class Trained:
    """The objects of a training loop as `InTrainingCompressor` takes them, checked. `initial`: the layers' orders."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        scheduler: Stateful | Sequence[Stateful],
        grad_scaler: GradScaler | None,
        adapters: Adapters | None,
        mirrors: Sequence[nn.Module],
    ) -> None:
        require_kind("grad_scaler", grad_scaler, GradScaler, type(None))
        self.processes = processes_of(model)
        self.model, self.adapters, self._scaler = self.processes.model, adapters, grad_scaler
        self.optimizers = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
        schedulers = tuple(scheduler) if isinstance(scheduler, Sequence) else (scheduler,)
        for item in schedulers:
            require_kind("scheduler", item, Stateful, wanted="an object with state_dict and load_state_dict")
        self.restorable = schedulers if grad_scaler is None else (*schedulers, grad_scaler)
        require_each("mirrors", mirrors, nn.Module, wanted="a sequence of copies of the model")
        layers = require_layers(self.model, adapters)
        self.mirrors = tuple(mirrors)
        self.all = nn.ModuleList([self.model, *self.mirrors]) if mirrors else self.model
        with self.whole():
            require_mirrors(layers, self.mirrors)
            self.initial = {x.name: x.adapter.slots(x.module, read_system(x)) for x in layers}
        self.watch = StepWatch(self.optimizers)
        require_their_optimizer(layers, self.optimizers)

    def calibration(self, *, capture_gradients: bool) -> Calibration:
        """What captures inputs and output gradients in training."""
        return Calibration(
            self.model,
            adapters=self.adapters,
            capture_gradients=capture_gradients,
            max_tokens=-(-MAX_TOKENS // self.processes.size),
            grad_scale=None if self._scaler is None else self._scaler.get_scale,
            training_only=True,
        )

    def whole(self) -> AbstractContextManager[None]:
        """Inside, parameters and the optimizers' state are as on a single process."""
        return self.processes.whole(self.optimizers)

    def check(self, what: Mapping[str, object]) -> None:
        """Raise DistributedError, on every process, where they are not at the same point of the same run."""
        self.processes.check({**what, "the number of mirrors": len(self.mirrors)}, self.optimizers)

    def cut(self, settings: CompressionSettings, calibration: Calibration, history: History) -> CompressionReport:
        """Cut the model and its mirrors, with the budgets that `history` leaves: rank 0 decides, the others follow."""

        def decide() -> CompressionReport:
            return compress_(
                self.model,
                settings,
                optimizer=self.optimizers,
                calibration=calibration,
                adapters=self.adapters,
                budgets=history.budgets(),
                mirrors=self.mirrors,
            )

        return self.processes.cut(decide, settings, self.optimizers, calibration, self.adapters, self.mirrors)

    def measure(self, guard: Guard) -> float:
        """The guard's metric of the model, the same on all processes."""
        return self.processes.agreed(guard.measure(self.model))

    def snapshot(self) -> Snapshot:
        """A copy of all that a cut changes."""
        with self.whole():
            return Snapshot.take(self.all, self.optimizers, self.restorable)

    def restore(self, snapshot: Snapshot) -> None:
        """Make everything what it was when `snapshot` was taken."""
        with self.whole():
            snapshot.restore()
        self.resized()

    def resized(self) -> None:
        """Renew what depended on the parameters' sizes: wrappers and compiled graphs."""
        self.processes.resized()
        drop_graphs()

    def peak_memory(self) -> PeakMemory:
        """The peak until now of this process and the model's device."""
        return PeakMemory.now(next((p.device for p in self.model.parameters()), torch.device("cpu")))
