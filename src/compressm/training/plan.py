"""Which cut is made when and how: a pure function of the step, fixed before training starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError
from compressm.reduction.criteria import Criterion
from compressm.settings import CompressionSettings
from compressm.training.guard import Guard
from compressm.training.presets import preset
from compressm.training.schedule import Schedule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutPlan:
    """The schedule, the settings of each cut, how many steps before it are captured, and the guard's settings.

    `criteria`, where given, replace the settings' criterion: the k-th of them at the k-th scheduled cut, the last one
    from then on. Where the next cut comes sooner than the guard's probe, the guard looks right before it instead.
    """

    schedule: Schedule
    settings: CompressionSettings
    criteria: tuple[Criterion, ...] = ()
    calibration_steps: int = 2
    guard: Guard | None = None

    def __post_init__(self) -> None:
        require_integer("calibration_steps", self.calibration_steps, 0)
        require_kind("schedule", self.schedule, Schedule, wanted="one such as Window(0, 4000, 4) or Every(1000)")
        require_kind("settings", self.settings, CompressionSettings)
        require_kind("guard", self.guard, Guard, type(None))
        require_kind("criteria", self.criteria, tuple, wanted="a sequence of criteria such as HankelEnergy(0.02)")
        if wrong := [c for c in self.criteria if not isinstance(c, Criterion)]:
            raise ConfigError(f"criteria holds {wrong[0]!r}; wanted criteria such as HankelEnergy(0.02).")
        if self.guard is not None and self.probe_after < self.guard.probe_after:
            _log.warning(
                "The guard looks %d steps after a cut instead of %d: that is when the next cut may come. Set "
                "probe_after to %d or less, or make the cuts rarer.",
                *(self.probe_after, self.guard.probe_after, self.probe_after),
            )

    @property
    def probe_after(self) -> int:
        """How many steps after a cut the guard judges it: those it was given, or fewer where cuts follow sooner."""
        if self.guard is None:
            return 0
        gap = self.schedule.min_gap()
        return self.guard.probe_after if gap is None else min(self.guard.probe_after, gap)

    def settings_at(self, step: int) -> CompressionSettings:
        """The settings of the cut at `step`."""
        if not self.criteria:
            return self.settings
        cut = self.schedule.count(step) - 1
        return replace(self.settings, criterion=self.criteria[min(cut, len(self.criteria) - 1)])

    def captures_after(self, step: int) -> bool:
        """Whether the training step that follows `step` is among the last `calibration_steps` before a cut."""
        cut = self.schedule.next_cut(step)
        return cut is not None and cut - step <= self.calibration_steps

    def fingerprint(self) -> dict[str, object]:
        """What must agree between a saved compressor and the one that goes on from it."""
        return {
            "schedule": self.schedule.to_dict(),
            "settings": self.settings.to_dict(),
            "criteria": [repr(c) for c in self.criteria],
            "calibration_steps": self.calibration_steps,
            "guard": None if self.guard is None else self.guard.to_dict(),
        }


def make_plan(
    schedule: Schedule | None,
    total_steps: int | None,
    settings: CompressionSettings | str | None,
    criteria: Sequence[Criterion],
    calibration_steps: int,
    guard: Guard | None,
) -> CutPlan:
    """The plan that the compressor's arguments describe; a run of `total_steps` gets its preset's schedule."""
    if (schedule is None) == (total_steps is None):
        raise ConfigError("Give either total_steps= (for the preset's schedule) or schedule=, and not both.")
    wanted = "CompressionSettings or the name of a preset"
    require_kind("settings", settings, CompressionSettings, str, type(None), wanted=wanted)
    require_kind("criteria", criteria, list, tuple, wanted="a sequence of criteria such as [HankelEnergy(0.02)]")
    named = preset(settings if isinstance(settings, str) else "default")
    if total_steps is not None:
        schedule = named.schedule(total_steps)
    if schedule is None:
        raise ConfigError("Give either total_steps= or schedule=.")
    chosen = settings if isinstance(settings, CompressionSettings) else named.settings
    return CutPlan(schedule, chosen, tuple(criteria), calibration_steps, guard)


def differences(saved: object, here: object, path: str = "") -> list[str]:
    """What differs between two fingerprints, one line for each setting."""
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        keys = [*saved, *(k for k in here if k not in saved)]
        return [
            line
            for key in keys
            for line in differences(saved.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if saved == here else [f"{path} was {saved!r} and is {here!r} now"]
