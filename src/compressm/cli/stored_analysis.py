"""Spectra, orders and cuts of a stored model, weighted by the data it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from compressm.adapters.calibration import Calibration
from compressm.cli.console import Terminal
from compressm.cli.objective import Objective
from compressm.cli.parsing import nearest
from compressm.cli.recorder import count
from compressm.cli.stored import StoredModel
from compressm.compress import analyze, compress_
from compressm.data.batching import Batcher
from compressm.data.dataset import Dataset
from compressm.errors import CompressmError, ConfigError
from compressm.reduction.report import ReductionPlan
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings
from compressm.surgery.saved_model import SavedModel
from compressm.training.presets import PRESETS, Preset


@dataclass(frozen=True)
class Outlook:
    """What one tolerance would give; `parameters` is None where the cut itself would be refused."""

    discard: float
    plan: ReductionPlan
    parameters: int | None


def calibrate(stored: StoredModel, dataset: Dataset, batches: int, terminal: Terminal) -> Calibration:
    """Inputs and loss gradients of every layer on the first training batches, in evaluation mode (no dropout)."""
    batcher = Batcher(dataset, stored.config.training.batch_size, stored.config.training.seed)
    objective = Objective.of(dataset)
    with Calibration(stored.model) as calibration:
        for step in terminal.track(range(batches), batches, "Calibrating"):
            with torch.enable_grad():
                objective.loss(stored.model, batcher.training(step)).backward()
    stored.model.zero_grad(set_to_none=True)
    return calibration


def named_preset(name: str) -> Preset:
    """The preset that `--preset` names.

    Raises:
        ConfigError: there is none; the message gives the nearest one.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset is {name!r}; wanted one of {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
    return PRESETS[name]


def require_fraction(option: str, value: float) -> None:
    """Raise ConfigError unless an option's value is a fraction that may be discarded."""
    if not 0 <= value < 1:
        raise ConfigError(f"{option} is {value:g}; wanted at least 0 and less than 1.")


def without_data(chosen: Preset) -> Preset:
    """The preset with the classical Gramians, which need no data."""
    white = GramianSource.WHITE
    return replace(chosen, settings=replace(chosen.settings, controllability=white, observability=white))


def needs_data(chosen: Preset) -> bool:
    """Whether any Gramian is weighted by data."""
    return {chosen.settings.controllability, chosen.settings.observability} != {GramianSource.WHITE}


def outlooks(
    stored: StoredModel, preset: Preset, tolerances: Sequence[float], calibration: Calibration | None
) -> list[Outlook]:
    """The plan for each tolerance, and the number of parameters the model would have."""
    result = []
    for discard in tolerances:
        settings = preset.discarding(discard)
        plan = analyze(stored.model, settings, calibration=calibration)
        result.append(Outlook(discard, plan, _parameters(stored.model, settings, calibration)))
    return result


def _parameters(model: nn.Module, settings: CompressionSettings, calibration: Calibration | None) -> int | None:
    """The model's trainable numbers after such a cut, which is made and taken back; None where it is refused.

    Orders alone do not tell: a layer may lose more than states, as S4 does when it becomes diagonal.
    """
    saved = SavedModel.take(model)
    try:
        compress_(model, settings, calibration=calibration)
        return count(model)
    except CompressmError:
        return None
    finally:
        saved.restore()
