"""When to cut: schedules are frozen values and pure functions of the number of optimizer steps done.

A step number counts completed optimizer steps, so the first possible cut is at step 1 (right after the first one).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import ClassVar

from compressm.checks import brief, require_integer, require_kind
from compressm.errors import ConfigError


@dataclass(frozen=True)
class Schedule(ABC):
    """The steps at which cuts are made; the k-th cut is at the k-th of them."""

    kind: ClassVar[str]

    @abstractmethod
    def count(self, step: int) -> int:
        """How many cuts lie at or before `step`."""

    @abstractmethod
    def nth(self, k: int) -> int | None:
        """The step of the k-th cut, k = 1, 2, ...; None where there are fewer."""

    @abstractmethod
    def min_gap(self) -> int | None:
        """The fewest steps between two cuts; None where there is at most one."""

    def next_cut(self, step: int) -> int | None:
        """The first cut after `step`; None where none is left."""
        return self.nth(self.count(step) + 1)

    def is_cut(self, step: int) -> bool:
        """Whether a cut is due after the step numbered `step`."""
        return step > 0 and self.next_cut(step - 1) == step

    def to_dict(self) -> dict[str, object]:
        """A description for JSON: the kind's name and the fields; `schedule_from_dict` reads it."""
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}


@dataclass(frozen=True)
class At(Schedule):
    """Cuts at the given steps. Raises ConfigError unless there are some, all are 1 or more, and they increase."""

    kind: ClassVar[str] = "at"
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        require_kind("At.steps", self.steps, list, tuple, range, wanted="the steps of the cuts, such as (100, 200)")
        object.__setattr__(self, "steps", tuple(self.steps))
        for step in self.steps:
            require_integer("At.steps", step, 1)
        if not self.steps or any(b <= a for a, b in pairwise(self.steps)):
            raise ConfigError(f"At.steps is {list(self.steps)}; wanted one step or more, each larger than the last.")

    def count(self, step: int) -> int:
        return bisect_right(self.steps, step)

    def nth(self, k: int) -> int | None:
        return self.steps[k - 1] if 1 <= k <= len(self.steps) else None

    def min_gap(self) -> int | None:
        return min((b - a for a, b in pairwise(self.steps)), default=None)


@dataclass(frozen=True)
class Window(Schedule):
    """`cuts` equidistant cuts in (start, end], the last at `end`: start + floor(k (end - start) / cuts), k = 1 .. cuts.

    The paper's schedule is `Window(0, total // 10, 4)` (Chahine et al. 2026, section 4). Raises ConfigError where
    the window has fewer steps than cuts.
    """

    kind: ClassVar[str] = "window"
    start: int
    end: int
    cuts: int

    def __post_init__(self) -> None:
        require_integer("Window.start", self.start, 0)
        require_integer("Window.cuts", self.cuts, 1)
        require_integer("Window.end", self.end, 0)
        if self.end - self.start < self.cuts:
            raise ConfigError(
                f"Window from {self.start} to {self.end} has {max(self.end - self.start, 0)} steps for {self.cuts} "
                "cuts; make it longer or ask for fewer cuts."
            )

    def count(self, step: int) -> int:
        if step < self.start:
            return 0
        passed = min(step, self.end) - self.start + 1  # floor(k span / cuts) <= s exactly where k span < cuts (s + 1)
        return min((self.cuts * passed - 1) // (self.end - self.start), self.cuts)

    def nth(self, k: int) -> int | None:
        return self.start + k * (self.end - self.start) // self.cuts if 1 <= k <= self.cuts else None

    def min_gap(self) -> int | None:
        gap, rest = divmod(self.end - self.start, self.cuts)
        return None if self.cuts == 1 else gap + (rest == self.cuts - 1)  # the first short gap is before the first cut


@dataclass(frozen=True)
class Every(Schedule):
    """A cut every `interval` steps after `start`: at start + k interval, k = 1, 2, ..., while at most `stop`."""

    kind: ClassVar[str] = "every"
    interval: int
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        require_integer("Every.interval", self.interval, 1)
        require_integer("Every.start", self.start, 0)
        if self.stop is not None:
            require_integer("Every.stop", self.stop, self.start + self.interval)

    def count(self, step: int) -> int:
        last = step if self.stop is None else min(step, self.stop)
        return max(0, last - self.start) // self.interval

    def nth(self, k: int) -> int | None:
        step = self.start + k * self.interval
        return step if k >= 1 and (self.stop is None or step <= self.stop) else None

    def min_gap(self) -> int | None:
        return self.interval if self.nth(2) is not None else None


@dataclass(frozen=True)
class WarmupThenEvery(Schedule):
    """The first cut at `warmup`, then one every `interval` steps, while at most `stop`.

    With `FixedFraction(0.25)` this is "10,000 steps at full size, drop 25 %, 10,000 more, drop 25 %".
    """

    kind: ClassVar[str] = "warmup_then_every"
    warmup: int
    interval: int
    stop: int | None = None

    def __post_init__(self) -> None:
        require_integer("WarmupThenEvery.warmup", self.warmup, 1)
        require_integer("WarmupThenEvery.interval", self.interval, 1)
        if self.stop is not None:
            require_integer("WarmupThenEvery.stop", self.stop, self.warmup)

    def count(self, step: int) -> int:
        last = step if self.stop is None else min(step, self.stop)
        return 0 if last < self.warmup else (last - self.warmup) // self.interval + 1

    def nth(self, k: int) -> int | None:
        step = self.warmup + (k - 1) * self.interval
        return step if k >= 1 and (self.stop is None or step <= self.stop) else None

    def min_gap(self) -> int | None:
        return self.interval if self.nth(2) is not None else None


@dataclass(frozen=True)
class Never(Schedule):
    """No cut, as in a trial run of a few steps."""

    kind: ClassVar[str] = "never"

    def count(self, step: int) -> int:
        return 0

    def nth(self, k: int) -> int | None:
        return None

    def min_gap(self) -> int | None:
        return None


_KINDS: dict[str, type[Schedule]] = {c.kind: c for c in (At, Window, Every, WarmupThenEvery, Never)}


def schedule_from_dict(data: Mapping[str, object]) -> Schedule:
    """The schedule that `Schedule.to_dict` described; ConfigError for an unknown kind or unknown or missing fields."""
    require_kind("A schedule", data, Mapping, wanted="what Schedule.to_dict returned")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"A schedule of kind {brief(kind)} is not known; known are {sorted(_KINDS)}.")
    values = {k: v for k, v in data.items() if k != "kind"}
    known = [f.name for f in fields(_KINDS[kind])]
    if unknown := sorted(str(name) for name in values if name not in known):
        raise ConfigError(f"The schedule {kind!r} has no fields {unknown}; it has {known}.")
    if isinstance(values.get("steps"), list):
        values["steps"] = tuple(values["steps"])  # type: ignore[arg-type]
    try:
        return _KINDS[kind](**values)
    except TypeError as error:
        raise ConfigError(
            f"The schedule {kind!r} cannot be made from {values}: {error}; its fields are {known}."
        ) from error
