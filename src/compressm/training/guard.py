"""The guard: measure before a cut and some steps after it, and take the cut back where the metric got worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

from torch import nn

from compressm.checks import require_integer, require_kind, require_number
from compressm.errors import ConfigError
from compressm.training.evaluation import measure


@dataclass(frozen=True)
class Guard:
    """Take a cut back if a metric got worse by more than `allowed` within `probe_after` steps.

    `metric()` is called right before a cut and again after `probe_after` more optimizer steps (after the last cut
    too; right before the next cut where that comes sooner), in evaluation mode, without gradients, and with all random
    states put back afterwards; a value that is not a number counts as worse. A refused cut is rolled back whole:
    weights, buffers, optimizers, schedulers, random states, the compressor's history and its count of steps, which goes
    back to the cut. The data are not rewound: training goes on with the next batch. The refused cut is not tried again;
    with `stop_after_rollback` (the default, as in the paper's "pragmatic" variant) none of the later ones is made
    either.

    While a probe is pending, a copy of the model and of the optimizer's state is kept on their own devices.
    Raises ConfigError where a setting is out of range.
    """

    metric: Callable[[], float]
    allowed: float
    higher_is_better: bool
    probe_after: int
    stop_after_rollback: bool = True

    def __post_init__(self) -> None:
        if not callable(self.metric):
            raise ConfigError(f"Guard.metric is {self.metric!r}; wanted a function without arguments.")
        require_number("Guard.allowed", self.allowed, 0, wanted="how much worse is still fine, 0 or more")
        require_integer("Guard.probe_after", self.probe_after, 1)
        require_kind("Guard.higher_is_better", self.higher_is_better, bool)
        require_kind("Guard.stop_after_rollback", self.stop_after_rollback, bool)

    def measure(self, model: nn.Module) -> float:
        """The metric now; leaves modes and random states as they were."""
        return measure(self.metric, model)

    def refuses(self, before: float, after: float) -> bool:
        """Whether `after` is worse than `before` by more than `allowed`; NaN after the cut always is."""
        if isnan(after):
            return True
        if isnan(before) or after == before:  # equal infinities have no difference
            return False
        loss = before - after if self.higher_is_better else after - before
        return loss > self.allowed

    def to_dict(self) -> dict[str, object]:
        """The settings but for the metric, for JSON."""
        return {
            "allowed": self.allowed,
            "higher_is_better": self.higher_is_better,
            "probe_after": self.probe_after,
            "stop_after_rollback": self.stop_after_rollback,
        }
