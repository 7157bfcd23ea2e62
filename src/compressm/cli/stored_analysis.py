"""Spectra, orders and cuts of a stored model, weighted by the data it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_layers
from compressm.cli.console import Terminal
from compressm.cli.objective import Objective
from compressm.cli.parsing import nearest
from compressm.cli.recorder import count
from compressm.cli.stored import StoredModel
from compressm.compress import analyze
from compressm.data.batching import Batcher
from compressm.data.dataset import Dataset
from compressm.errors import ConfigError
from compressm.reduction.report import ReductionPlan
from compressm.reduction.result import GramianSource
from compressm.training.presets import PRESETS, Preset


@dataclass(frozen=True)
class Outlook:
    """What one tolerance would give."""

    discard: float
    plan: ReductionPlan
    parameters: int


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


def without_data(chosen: Preset) -> Preset:
    """The preset with the classical Gramians, which need no data."""
    white = GramianSource.WHITE
    return replace(chosen, settings=replace(chosen.settings, controllability=white, observability=white))


def outlooks(
    stored: StoredModel, preset: Preset, tolerances: Sequence[float], calibration: Calibration | None
) -> list[Outlook]:
    """The plan for each tolerance, and the number of parameters the model would have."""
    result = []
    for discard in tolerances:
        plan = analyze(stored.model, preset.discarding(discard), calibration=calibration)
        orders = {layer.name: layer.planned_order for layer in plan.layers}
        result.append(Outlook(discard, plan, _parameters(stored, orders)))
    return result


def _parameters(stored: StoredModel, orders: dict[str, int]) -> int:
    """The model's trainable numbers if its layers had these orders."""
    total = count(stored.model)
    for layer in find_layers(stored.model):
        smaller = type(layer.module)(stored.config.model.width, orders[layer.name])
        total += count(smaller) - count(layer.module)
    return total
