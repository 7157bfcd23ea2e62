"""What every integration takes besides what it finds in its trainer, and how a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from compressm.adapters.registry import Adapters
from compressm.errors import SurgeryError
from compressm.reduction.criteria import Criterion
from compressm.settings import CompressionSettings
from compressm.surgery.wrappers import is_sharded
from compressm.training.compressor import InTrainingCompressor, OnError
from compressm.training.distributed.rank_states import RankStates
from compressm.training.guard import Guard
from compressm.training.history import Cut
from compressm.training.presets import preset
from compressm.training.schedule import Never, Schedule
from compressm.training.state import saved_schedule, with_schedule

_log = logging.getLogger(__name__)


class CompressorOptions(TypedDict, total=False):
    """The arguments of `InTrainingCompressor` but for the model, optimizers, schedulers and gradient scaler.

    Without `total_steps` and `schedule`, the trainer's own number of optimizer steps is the length of the run.
    """

    total_steps: int | None
    schedule: Schedule | None
    settings: CompressionSettings | str | None
    criteria: Sequence[Criterion]
    guard: Guard | None
    calibration_steps: int
    adapters: Adapters | None
    on_cut: Callable[[Cut], None] | None
    on_error: OnError
    mirrors: Sequence[nn.Module]


def with_length(
    options: CompressorOptions, total_steps: int | None, saved: Mapping[str, Any] | None = None
) -> CompressorOptions:
    """The options with the schedule of a run that goes on from the state `saved`, or of one of `total_steps`.

    What the options say themselves of the length or the schedule comes first. A run that goes on keeps the schedule
    that it began with, however long it is now. One too short for the cuts of its preset is not cut, which is logged.
    """
    if options.get("schedule") is not None or options.get("total_steps") is not None:
        return options
    schedule = None if saved is None else saved_schedule(saved)
    if schedule is not None and schedule != Never():
        return {**options, "schedule": schedule}
    settings = options.get("settings")
    chosen = preset(settings if isinstance(settings, str) else "default")
    if total_steps is not None and total_steps < chosen.shortest:
        _log.warning(
            "A run of %d steps is too short for the cuts of the preset '%s', which needs %d or more: nothing is cut.",
            total_steps,
            chosen.name,
            chosen.shortest,
        )
        return {**options, "schedule": Never()}
    return {**options, "total_steps": total_steps}


def trained(model: nn.Module) -> nn.Module:
    """The model as a compressor takes it. Raises SurgeryError where the trainer has sharded it."""
    if is_sharded(model):
        raise SurgeryError(
            "The trainer keeps this model in shards (fully_shard), and its checkpoints of a cut model cannot be loaded "
            "yet. Remedy: train replicas (DDP), or use InTrainingCompressor in a plain loop, which cuts such models."
        )
    return model


def go_on(compressor: InTrainingCompressor, state: Mapping[str, Any], options: CompressorOptions) -> None:
    """Load a state that `collected` returned, on all processes.

    Where `total_steps` is given, or nothing was to be cut, the compressor's schedule replaces the saved one: cuts that
    were made stay, and from here on the new schedule's are made. Raises ConfigError as `load_state_dict` does.
    """
    before, now = saved_schedule(state), compressor.plan.schedule
    if before != now and (options.get("total_steps") is not None or before == Never()):
        _log.warning("The schedule of the saved run, %s, is replaced by %s.", before, now)
        state = with_schedule(state, now)
    RankStates(compressor).load_state_dict(state)


def collected(compressor: InTrainingCompressor) -> dict[str, Any]:
    """The compressor's state with what each process has for itself; called by all of them."""
    return RankStates.collect(compressor).state_dict()
