"""What a compressor writes into a checkpoint: nested dictionaries and lists of numbers, texts and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from compressm.checks import brief, require_integer, require_kind
from compressm.errors import CompressmError, ConfigError
from compressm.settings import CompressionSettings
from compressm.surgery.snapshot import Snapshot, Stateful
from compressm.training.clock import StepClock
from compressm.training.history import Cut, History
from compressm.training.plan import CutPlan, differences
from compressm.training.probe import Probe
from compressm.training.schedule import Schedule, schedule_from_dict
from compressm.training.summary import PeakMemory

VERSION = 1
_KEYS = ("steps", "stopped", "history", "calibration", "probe")


def check_state(state: Mapping[str, Any], plan: CutPlan, layers: Sequence[str]) -> None:
    """Raise ConfigError unless `state` was written by a compressor with this plan for a model with these layers."""
    require_kind("The compressor's state", state, Mapping, wanted="what state_dict() returned")
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"The compressor's state has version {brief(version)}; this library reads {VERSION}. "
            "Give what state_dict() returned, and update the library where the version is newer."
        )
    if missing := [key for key in ("fingerprint", *_KEYS) if key not in state]:
        raise ConfigError(f"The compressor's state lacks {missing}; give all that state_dict() returned.")
    require_integer("The count of steps in the compressor's state", state["steps"], 0)
    require_kind("'stopped' in the compressor's state", state["stopped"], bool)
    with damage_told():
        saved = {**state["fingerprint"]}
        saved["settings"] = {**CompressionSettings().to_dict(), **saved["settings"]}  # those there were not yet
        found = differences(saved, plan.fingerprint())
    if found:
        raise ConfigError(
            "The saved run was compressed under other settings; make the compressor with the same ones to go on from "
            "it: " + "; ".join(found) + "."
        )
    saved = History.from_dict(state["history"]).initial
    if sorted(saved) != sorted(layers):
        raise ConfigError(f"The saved run has the layers {sorted(saved)} and this model {sorted(layers)}.")


def saved_schedule(state: Mapping[str, Any]) -> Schedule:
    """The schedule of a compressor whose `state_dict` this is. Raises ConfigError where it is damaged."""
    with damage_told():
        return schedule_from_dict(state["fingerprint"]["schedule"])


def with_schedule(state: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
    """The state for a compressor with another schedule; what was captured for a cut of the old one is left out."""
    changed = {**state, "fingerprint": {**state["fingerprint"], "schedule": schedule.to_dict()}, "calibration": {}}
    if "ranks" in state:
        changed["ranks"] = [{**own, "calibration": {}} for own in state["ranks"]]
    return changed


@contextmanager
def damage_told() -> Iterator[None]:
    """ConfigError in place of what reading a damaged state raises."""
    try:
        yield
    except CompressmError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"The compressor's state is damaged ({error!r}); use another checkpoint.") from error


def probe_to_state(probe: Probe | None) -> dict[str, Any] | None:
    """A pending probe, its snapshot included."""
    if probe is None:
        return None
    history = History({}, (*probe.events, probe.cut)).to_dict()
    return {
        "events": history["events"],  # the cut to judge comes last
        "before": str(probe.before),  # may be NaN
        "snapshot": probe.snapshot.state_dict(),
    }


def probe_from_state(
    state: Mapping[str, Any] | None, model: nn.Module, optimizers: Sequence[Optimizer], schedulers: Sequence[Stateful]
) -> Probe | None:
    """The probe that `probe_to_state` wrote, for the same training objects."""
    if state is None:
        return None
    *events, cut = History.from_dict({"initial": {}, "events": state["events"]}).events
    if not isinstance(cut, Cut):
        raise ConfigError(f"The compressor's state has a pending probe of {cut!r}; wanted a cut.")
    snapshot = Snapshot.from_state_dict(state["snapshot"], model, optimizers, schedulers)
    snapshot.random_state.check()
    return Probe(cut, float(state["before"]), snapshot, tuple(events))


def times_to_state(clock: StepClock, peak: PeakMemory) -> dict[str, Any]:
    """What was measured of time and memory."""
    return {"clock": clock.state_dict(), "peak": [peak.process, peak.device]}


def times_from_state(state: Mapping[str, Any] | None, history: History) -> tuple[StepClock, PeakMemory]:
    """What `times_to_state` wrote, for a run of that history; a run saved without times begins to measure now."""
    if state is None:
        return StepClock(history.last_orders()), PeakMemory()
    try:
        process, device = (None if value is None else int(value) for value in state["peak"])
        clock = state["clock"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The compressor's times are damaged ({error!r}); use another checkpoint.") from error
    return StepClock.from_state_dict(clock, history.last_orders()), PeakMemory(process, device)
