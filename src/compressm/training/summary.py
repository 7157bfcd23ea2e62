"""What a run took: measured step times at each size, the cost of cutting, and the saving that follows from them."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compressm.training.clock import StepClock, Stretch, Work
from compressm.training.history import Cut, History, RolledBack, Skipped

ENOUGH = 5
"""The fewest undisturbed step times from which a median is stated."""


@dataclass(frozen=True)
class SizeTime:
    """The steps made at one size of the model: how many, and the median of the `measured` ones (None below 5)."""

    orders: dict[str, int]
    steps: int
    measured: int
    seconds_per_step: float | None


@dataclass(frozen=True)
class TrainingSummary:
    """Measured time and memory of a run, over all the processes that it was resumed in.

    * `steps`: optimizer steps made, those that a rollback took back included; `sizes` tells them apart by the orders
      of the layers, the uncut size first. `cuts` counts those that changed a layer and stand.
    * `seconds_per_step` of a size is the median wall time between two calls of `step()`: data, forward and backward
      pass, optimizer. Steps with captures, and those during which something was evaluated inside `not_capturing()`,
      do not count.
    * `cut_seconds`: analysis and cuts, attempts that failed included. `capture_seconds`: what steps with captures took
      beyond the median of their size. `guard_seconds`: the guard's metric, copies and rollbacks.
    * `uncut_seconds`: an estimate, all steps at the median of the uncut size. `training_seconds`: each size's steps at
      its own median (at the uncut one's where fewer than 5 were measured, so that no saving is claimed for them) and
      the three costs above. `saved_seconds` is their difference, negative where cutting cost more than it saved. All
      three are None where the uncut size was not measured. Evaluations, checkpoints and the loading of programs are in
      none of them.
    * `peak_memory`: the largest resident memory of a process of the run so far, in bytes, None where the system does
      not tell. `peak_device_memory`: what PyTorch held at most on the model's CUDA device, None elsewhere.
    """

    steps: int
    sizes: tuple[SizeTime, ...]
    cuts: int
    rolled_back: int
    skipped: int
    cut_seconds: float
    capture_seconds: float
    guard_seconds: float
    uncut_seconds: float | None
    training_seconds: float | None
    peak_memory: int | None
    peak_device_memory: int | None

    @property
    def saved_seconds(self) -> float | None:
        """The estimated saving against the uncut run."""
        if self.uncut_seconds is None or self.training_seconds is None:
            return None
        return self.uncut_seconds - self.training_seconds

    @property
    def saved_fraction(self) -> float | None:
        """The estimated saving as a fraction of the uncut run's time."""
        saved = self.saved_seconds
        return None if saved is None or not self.uncut_seconds else saved / self.uncut_seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the saving included."""
        return {**asdict(self), "saved_seconds": self.saved_seconds, "saved_fraction": self.saved_fraction}

    def __str__(self) -> str:
        costs = (
            f"cuts {self.cut_seconds:.2f} s, captures {self.capture_seconds:.2f} s, guard {self.guard_seconds:.2f} s"
        )
        lines = [f"{self.steps} steps; {costs}"]
        for size in self.sizes:
            orders = ", ".join(f"{name or 'model'} {order}" for name, order in size.orders.items())
            seconds = size.seconds_per_step
            time = "not measured" if seconds is None else f"{1e3 * seconds:.2f} ms a step (median of {size.measured})"
            lines.append(f"  {size.steps} steps at order {orders}: {time}")
        if self.saved_seconds is not None and self.saved_fraction is not None:
            lines.append(
                f"estimated saving {self.saved_seconds:.2f} s, {100 * self.saved_fraction:.1f} % of the uncut run"
            )
        if self.peak_memory is not None:
            lines.append(f"peak memory {self.peak_memory / 2**20:.0f} MiB")
        if self.peak_device_memory is not None:
            lines.append(f"peak device memory {self.peak_device_memory / 2**20:.0f} MiB")
        return "\n".join(lines)


@dataclass(frozen=True)
class PeakMemory:
    """The largest memory of a process, and of PyTorch on a CUDA device, in bytes."""

    process: int | None = None
    device: int | None = None

    @classmethod
    def now(cls, device: torch.device) -> PeakMemory:
        """Those of this process until now."""
        held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return cls(_peak_resident(), held)

    def or_more(self, other: PeakMemory) -> PeakMemory:
        """The larger of each."""
        return PeakMemory(_larger(self.process, other.process), _larger(self.device, other.device))


def summarise(clock: StepClock, history: History, peak: PeakMemory) -> TrainingSummary:
    """The summary of what a clock measured and a compressor did."""
    sizes = tuple(_size(stretch) for stretch in clock.stretches if stretch.steps > 0)
    whole = _median(clock.stretches[0])
    capture = sum(_surplus(stretch, whole) for stretch in clock.stretches)
    costs = clock.spent(Work.CUT) + clock.spent(Work.GUARD) + capture
    steps = sum(size.steps for size in sizes)
    training = None
    if whole is not None:
        training = costs + sum(s.steps * (whole if s.seconds_per_step is None else s.seconds_per_step) for s in sizes)
    return TrainingSummary(
        steps=steps,
        sizes=sizes,
        cuts=sum(isinstance(event, Cut) and event.changed for event in history),
        rolled_back=sum(isinstance(event, RolledBack) for event in history),
        skipped=sum(isinstance(event, Skipped) for event in history),
        cut_seconds=clock.spent(Work.CUT),
        capture_seconds=capture,
        guard_seconds=clock.spent(Work.GUARD),
        uncut_seconds=None if whole is None else steps * whole,
        training_seconds=training,
        peak_memory=peak.process,
        peak_device_memory=peak.device,
    )


def _size(stretch: Stretch) -> SizeTime:
    return SizeTime(dict(stretch.orders), stretch.steps, stretch.measured, _median(stretch))


def _median(stretch: Stretch) -> float | None:
    return stretch.median if stretch.measured >= ENOUGH else None


def _surplus(stretch: Stretch, whole: float | None) -> float:
    """Seconds that steps with captures took beyond the median of their size; 0 where none was measured."""
    typical = _median(stretch) or whole
    return 0.0 if typical is None else max(stretch.captured_seconds - stretch.captured * typical, 0.0)


def _peak_resident() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _larger(a: int | None, b: int | None) -> int | None:
    known = [value for value in (a, b) if value is not None]
    return max(known, default=None)
