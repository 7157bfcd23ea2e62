"""A training loop with cuts in it, to read in one sitting; what it shows and stores is left to an observer."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor, nn

from compressm.errors import ConfigError
from compressm.training.compressor import InTrainingCompressor
from compressm.training.evaluation import undisturbed
from compressm.training.history import Cut, Event, RolledBack

BatchT = TypeVar("BatchT")
Scores = Mapping[str, float]


class Moment(Enum):
    """When a model was evaluated."""

    REGULAR = "regular"
    BEFORE_CUT = "before_cut"  # after the optimizer's step, right before the cut
    AFTER_CUT = "after_cut"  # right after the cut, before any further step
    END = "end"


@dataclass(frozen=True)
class LoopSettings:
    """How many optimizer steps to make, and after how many of them to log, evaluate and save (and at the last)."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands: steps done, and what has come together since the last log entry."""

    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    seconds: float = 0.0

    def after(self, loss: float, seconds: float) -> LoopState:
        """The state one step later."""
        return LoopState(self.step + 1, self.loss_sum + loss, self.losses + 1, self.seconds + seconds)

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers, for JSON; `LoopState(**numbers)` reads them."""
        return asdict(self)


class LoopObserver(ABC):
    """What a loop tells; step numbers count the optimizer steps done."""

    @abstractmethod
    def stepped(self, step: int, loss: float) -> None:
        """A step was made."""

    @abstractmethod
    def logged(self, step: int, loss: float, rate: float, seconds: float) -> None:
        """Mean loss and mean seconds of a step since the last entry, and the learning rate now."""

    @abstractmethod
    def evaluated(self, step: int, moment: Moment, scores: Scores) -> None:
        """The model was evaluated."""

    @abstractmethod
    def cutting(self, step: int) -> None:
        """A cut is due now; the model is still whole."""

    @abstractmethod
    def happened(self, step: int, event: Event) -> None:
        """The compressor did something: a cut, a cut that failed, a roll-back."""

    @abstractmethod
    def save(self, state: LoopState) -> None:
        """Everything is whole: write a checkpoint."""


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch_at: Callable[[int], BatchT],
    loss_of: Callable[[nn.Module, BatchT], Tensor],
    evaluate: Callable[[], Scores],
    rate_at: Callable[[int], float],
    compressor: InTrainingCompressor | None,
    settings: LoopSettings,
    observer: LoopObserver,
    state: LoopState | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    mean_of: Callable[[float], float] = float,
) -> LoopState:
    """Train from `state` to `settings.steps`; return early, saved, once `interrupted()` is true.

    `batch_at(k)` gives the batch of step k = 0, 1, ...; `rate_at(k)` the factor on each parameter group's "base_lr".
    Both are functions of the step alone, so that a resumed run goes on bit for bit. `evaluate()` runs without
    gradients, in evaluation mode, and leaves random states and captures as they were. Steps go on counting after a
    rollback, while the compressor counts from the cut again: later cuts come as many steps later. On several processes
    `mean_of` gives the mean of a loss over all of them.

    Raises:
        ConfigError: the loss is not finite, or a weight is not where a cut or a checkpoint is due.
    """
    state = state or LoopState()
    model.train()
    while state.step < settings.steps:
        began = time.perf_counter()
        rate = set_rates(optimizer, rate_at(state.step))
        loss = loss_of(model, batch_at(state.step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = _finite(mean_of(loss.item()), state.step + 1)
        state = state.after(value, time.perf_counter() - began)
        step, last = state.step, state.step == settings.steps
        observer.stepped(step, value)
        if compressor is not None:
            _compress(compressor, evaluate, observer, model, step, last)
        if step % settings.log_every == 0 or last:
            observer.logged(step, state.loss_sum / state.losses, rate, state.seconds / state.losses)
            state = LoopState(step)
        if step % settings.eval_every == 0 or last:
            moment = Moment.END if last else Moment.REGULAR
            observer.evaluated(step, moment, _scores(evaluate, model, compressor))
        stop = interrupted()
        if step % settings.checkpoint_every == 0 or last or stop:
            _require_finite_weights(model, step)
            observer.save(state)
        if stop:
            break
    return state


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's learning rate to `factor` times its "base_lr"; the last group's rate."""
    rate = 0.0
    for group in optimizer.param_groups:
        rate = group["lr"] = group["base_lr"] * factor
    return rate


def warmup_then(steps: int, warmup: int, final: float, cosine: bool) -> Callable[[int], float]:
    """The factor on the learning rate at step k = 0, 1, ...: a linear rise over `warmup` steps, then 1, or the
    half cosine that ends at `final` at the last step.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if not cosine:
            return 1.0
        part = (step - warmup) / max(steps - 1 - warmup, 1)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))

    return factor


def _compress(
    compressor: InTrainingCompressor,
    evaluate: Callable[[], Scores],
    observer: LoopObserver,
    model: nn.Module,
    step: int,
    last: bool,
) -> None:
    """One call of the compressor, with the model evaluated right before and right after a cut."""
    due = compressor.cut_due
    if due:
        _require_finite_weights(model, step)
        observer.cutting(step)
        observer.evaluated(step, Moment.BEFORE_CUT, _scores(evaluate, model, compressor))
    events = compressor.step()
    if last:
        events = (*events, *compressor.finish())
    for event in events:
        observer.happened(step, event)
    if any(isinstance(event, Cut | RolledBack) for event in events):
        observer.evaluated(step, Moment.AFTER_CUT, _scores(evaluate, model, compressor))


def _scores(evaluate: Callable[[], Scores], model: nn.Module, compressor: InTrainingCompressor | None) -> Scores:
    with undisturbed(model):
        if compressor is None:
            return evaluate()
        with compressor.not_capturing():
            return evaluate()


def _require_finite_weights(model: nn.Module, step: int) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"{name} has values that are NaN or infinite at step {step}: training diverged. This model is "
                "neither cut nor saved; earlier checkpoints are sound. Lower the learning rate."
            )


def _finite(value: float, step: int) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"The loss is {value} at step {step}: training diverged. Lower the learning rate.")
    return value
