"""What every integration takes besides what it finds in its trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from torch import nn

from compressm.adapters.registry import Adapters
from compressm.reduction.criteria import Criterion
from compressm.settings import CompressionSettings
from compressm.training.compressor import OnError
from compressm.training.guard import Guard
from compressm.training.history import Cut
from compressm.training.schedule import Schedule


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


def with_length(options: CompressorOptions, total_steps: int | None) -> CompressorOptions:
    """The options with the trainer's number of steps where they say nothing of their own."""
    if options.get("schedule") is not None or options.get("total_steps") is not None:
        return options
    return {**options, "total_steps": total_steps}
