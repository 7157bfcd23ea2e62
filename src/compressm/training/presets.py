"""Named settings: `paper` as published, `default` as this library measures best, and what lies between.

`white` is real-output balancing with the classical Gramians (the error bound holds); `data` weights controllability by
the layer's own inputs; `default` weights observability by the loss as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError
from compressm.reduction.criteria import HankelEnergy, Reference
from compressm.reduction.reducers import BalancedTruncation
from compressm.reduction.result import GramianSource
from compressm.settings import Balancing, CompressionSettings
from compressm.surgery.policy import StatePolicy
from compressm.training.schedule import Schedule, Window


@dataclass(frozen=True)
class Preset:
    """Settings of a cut, and the schedule for a run of `total_steps` optimizer steps, `shortest` or more."""

    name: str
    settings: CompressionSettings
    schedule: Callable[[int], Schedule]
    shortest: int

    def discarding(self, discard: float) -> CompressionSettings:
        """The settings with another tolerance: the fraction of the sum of the Hankel singular values to discard."""
        return replace(self.settings, criterion=HankelEnergy(discard, Reference.CURRENT))

    def refitted(self) -> Preset:
        """The preset with cuts that are fitted to the layers' own inputs (see `compressm.reduction.fitting`).

        Raises ConfigError where its Gramians are not weighted by these inputs.
        """
        if self.settings.controllability is not GramianSource.DATA:
            weighted = [p.name for p in PRESETS.values() if p.settings.controllability is GramianSource.DATA]
            raise ConfigError(
                f"A cut is fitted to the layers' own inputs, and the preset {self.name!r} takes classical Gramians, "
                f"which look at none. Use the preset {' or '.join(map(repr, weighted))}, or leave refit out."
            )
        return replace(self, settings=replace(self.settings, reducer=BalancedTruncation(refit=True)))


def paper_schedule(total_steps: int) -> Window:
    """4 equidistant cuts within the first tenth of the run, the last at its end (Chahine et al. 2026, section 4).

    Raises ConfigError for a run of less than 40 steps.
    """
    return _window("paper", total_steps, 1, 10)


def default_schedule(total_steps: int) -> Window:
    """Cuts at 10, 20, 30 and 40 % of the run. Raises ConfigError for a run of less than 10 steps."""
    return _window("default", total_steps, 2, 5)


def _window(name: str, total_steps: int, numerator: int, denominator: int) -> Window:
    require_integer("total_steps", total_steps, 1)
    end = numerator * total_steps // denominator
    if end < 4:
        raise ConfigError(
            f"A run of {total_steps} steps is too short for the 4 cuts of the preset {name!r}; give a schedule=."
        )
    return Window(0, end, 4)


_PAPER = Preset(
    "paper",
    CompressionSettings(
        criterion=HankelEnergy(0.02, Reference.CURRENT),
        minimum_gain=0.05,
        balancing=Balancing.COMPLEX,
        controllability=GramianSource.WHITE,
        observability=GramianSource.WHITE,
        optimizer_policy=StatePolicy.SLICE,
    ),
    paper_schedule,
    shortest=40,
)
_DEFAULT = Preset(
    "default",
    CompressionSettings(
        criterion=HankelEnergy(0.02, Reference.CURRENT),
        balancing=Balancing.REAL,
        controllability=GramianSource.DATA,
        observability=GramianSource.LOSS,
        optimizer_policy=StatePolicy.TRANSPORT,
    ),
    default_schedule,
    shortest=10,
)
_DATA = replace(_DEFAULT, name="data", settings=replace(_DEFAULT.settings, observability=GramianSource.WHITE))
_WHITE = replace(_DATA, name="white", settings=replace(_DATA.settings, controllability=GramianSource.WHITE))

PRESETS: Mapping[str, Preset] = MappingProxyType({p.name: p for p in (_PAPER, _DEFAULT, _DATA, _WHITE)})
"""The presets by name."""


def preset(name: str) -> Preset:
    """The preset of that name; ConfigError, with the known names, where there is none."""
    require_kind("preset", name, str, wanted=f"one of {sorted(PRESETS)}")
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}; known are {sorted(PRESETS)}.")
    return PRESETS[name]
