"""The wall clock of a run: how long steps take at each size, and what cutting costs.

A step's time is the wall time between two calls of `compressor.step()`. Nothing waits for a device: while a GPU lags
behind, the times of many steps add up to its own, since its queue is bounded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Any

from compressm.errors import ConfigError

SAMPLES = 256
"""At most twice so many times are kept of each size, at equal distances over its steps."""


class Work(Enum):
    """What takes time beside the training steps."""

    CUT = "cut"  # analysis and surgery
    GUARD = "guard"  # the guard's metric, its copies, taking a cut back


@dataclass(eq=False)
class Stretch:
    """The steps made at one size: every `stride`-th undisturbed time, and the times of steps that were captured."""

    orders: dict[str, int]
    steps: int = 0
    measured: int = 0
    stride: int = 1
    times: list[float] = field(default_factory=list)
    captured: int = 0
    captured_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count an undisturbed time."""
        if self.measured % self.stride == 0:
            self.times.append(seconds)
            if len(self.times) == 2 * SAMPLES:
                self.times, self.stride = self.times[::2], 2 * self.stride
        self.measured += 1

    @property
    def median(self) -> float | None:
        """The median of the times that were kept."""
        return statistics.median(self.times) if self.times else None


class StepClock:
    """Takes the time between steps, apart for each size of the model and for steps whose passes are captured."""

    def __init__(self, orders: Mapping[str, int]) -> None:
        """Start at a model of these orders; the first size is the uncut one."""
        self._stretches = [Stretch(dict(orders))]
        self._now = self._stretches[0]
        self._spent = dict.fromkeys(Work, 0.0)
        self._left: float | None = None

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """What was measured at each size, in the order of their first steps."""
        return tuple(self._stretches)

    def spent(self, work: Work) -> float:
        """Seconds spent in `work`."""
        return self._spent[work]

    def enter(self, *, captured: bool) -> None:
        """A step was made; where nothing disturbed it, its time is that since the last `leave`."""
        stretch = self._now
        stretch.steps += 1
        if self._left is None:
            return
        seconds = time.perf_counter() - self._left
        if captured:
            stretch.captured += 1
            stretch.captured_seconds += seconds
        else:
            stretch.add(seconds)

    def leave(self) -> None:
        """The next step begins now."""
        self._left = time.perf_counter()

    def resize(self, orders: Mapping[str, int]) -> None:
        """Steps from here on are those of a model of these orders."""
        known = next((s for s in self._stretches if s.orders == orders), None)
        if known is None:
            known = Stretch(dict(orders))
            self._stretches.append(known)
        self._now = known

    def disturb(self) -> None:
        """The time of the step that is being made does not count: something else runs meanwhile."""
        self._left = None

    @contextmanager
    def timing(self, work: Work) -> Iterator[None]:
        """Count the seconds inside as `work`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[work] += time.perf_counter() - began

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "stretches": [{**vars(s), "orders": dict(s.orders), "times": list(s.times)} for s in self._stretches],
            "spent": {work.value: seconds for work, seconds in self._spent.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], orders: Mapping[str, int]) -> StepClock:
        """The clock that `state_dict` described, now at a model of these orders; ConfigError where it is damaged."""
        clock = cls(orders)
        try:
            stretches = [_stretch(entry) for entry in state["stretches"]]
            clock._spent = {work: _number(state["spent"][work.value]) for work in Work}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"The compressor's times are damaged ({error!r}); use another checkpoint.") from error
        clock._stretches = stretches or clock._stretches
        clock.resize(orders)
        return clock


def _stretch(entry: Mapping[str, Any]) -> Stretch:
    """The stretch in a state; whatever `_number` and `int` refuse is damaged."""
    counts = {name: int(entry[name]) for name in ("steps", "measured", "stride", "captured")}
    if min(counts.values()) < 0 or counts["stride"] < 1 or len(entry["times"]) > 2 * SAMPLES:
        raise ValueError(f"its counts {counts}")
    return Stretch(
        orders={str(name): int(order) for name, order in entry["orders"].items()},
        times=[_number(seconds) for seconds in entry["times"]],
        captured_seconds=_number(entry["captured_seconds"]),
        **counts,
    )


def _number(value: Any) -> float:
    seconds = float(value)
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"the time {seconds}")
    return seconds
