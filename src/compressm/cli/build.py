"""From a configuration and a data set to model, optimizer and compressor."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compressm.adapters.registry import find_layers
from compressm.cli.config import CompressionConfig, OptimizerKind, RateSchedule, RunConfig, TrainingConfig
from compressm.cli.objective import Objective
from compressm.data.dataset import Dataset, Task
from compressm.errors import ConfigError
from compressm.layers.config import ModelConfig
from compressm.layers.config import Task as HeadTask
from compressm.layers.families import FAMILIES
from compressm.layers.model import SequenceModel
from compressm.reduction.criteria import Criterion, ErrorBound, FixedFraction, FixedOrder, HankelEnergy
from compressm.settings import CompressionSettings
from compressm.training.compressor import InTrainingCompressor
from compressm.training.guard import Guard
from compressm.training.loop import warmup_then
from compressm.training.presets import Preset, preset
from compressm.training.schedule import At, Every, Schedule, Window


def model_config(config: RunConfig, dataset: Dataset) -> ModelConfig:
    """The model's settings: those of the run, with inputs and outputs of the data.

    A kind of layer that is normalised over a length gets that of the longest training sequence, unless the run gives
    another one.
    """
    head = HeadTask.SEQUENCE if dataset.task is Task.SEQUENCE else HeadTask.CLASSIFY
    options = dict(vars(config.model))
    if options["length"] is None and "length" in FAMILIES[config.model.layer].options:
        options["length"] = int(dataset.train.x.lengths.max())
    return ModelConfig(inputs=dataset.channels, outputs=dataset.outputs, task=head, **options)


def build_model(config: ModelConfig, seed: int) -> SequenceModel:
    """The model at the start of a run; every global random state is seeded, so that a run is the same again."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return SequenceModel(config)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW with two parameter groups: state space layers (own rate, no decay) and the rest.

    Each group's "base_lr" is its full learning rate, of which a schedule takes a part.
    """
    inside = {id(p) for layer in find_layers(model) for p in layer.module.parameters()}
    ssm = [p for p in model.parameters() if id(p) in inside]
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [
        {"params": ssm, "weight_decay": 0.0, "base_lr": config.lr * config.ssm_lr_factor},
        {"params": rest, "weight_decay": config.weight_decay, "base_lr": config.lr},
    ]
    kind = torch.optim.AdamW if config.optimizer is OptimizerKind.ADAMW else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=True)


def build_rates(config: TrainingConfig) -> Callable[[int], float]:
    """The factor on the learning rates as a function of the step."""
    final = min(config.final_lr / config.lr, 1.0) if config.lr > 0 else 1.0
    return warmup_then(config.steps, config.warmup, final, config.schedule is RateSchedule.COSINE)


def build_compressor(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    objective: Objective,
    validate: Callable[[], float],
) -> InTrainingCompressor | None:
    """The compressor that the configuration asks for; None where it asks for none."""
    options = config.compression
    if not options.enabled:
        return None
    chosen = preset(options.preset.value)
    guard = None
    if options.guard is not None:
        guard = Guard(validate, options.guard, objective.higher_is_better, options.guard_probe)
    return InTrainingCompressor(
        model,
        optimizer,
        schedule=build_schedule(options, chosen, config.training.steps),
        settings=build_settings(options, chosen),
        criteria=build_criteria(options),
        guard=guard,
        calibration_steps=options.calibration_steps,
    )


def build_settings(options: CompressionConfig, chosen: Preset) -> CompressionSettings:
    """The preset's settings, with what the options give in their place."""
    chosen = chosen.refitted() if options.refit else chosen
    criterion = chosen.settings.criterion
    if options.bound is not None:
        criterion = ErrorBound(options.bound)
    elif isinstance(criterion, HankelEnergy):
        discard = criterion.discard if options.discard is None else options.discard
        criterion = HankelEnergy(discard, options.reference or criterion.reference)
    names = ("multiple", "floor", "minimum_gain", "optimizer_policy", "unstable")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(chosen.settings, criterion=criterion, **given)


def build_criteria(options: CompressionConfig) -> Sequence[Criterion]:
    """One criterion for each cut where orders or a fraction to drop are given; otherwise the settings' own counts."""
    if options.orders is not None:
        return [FixedOrder(order) for order in options.orders]
    return [] if options.drop is None else [FixedFraction(options.drop)]


def build_schedule(options: CompressionConfig, chosen: Preset, steps: int) -> Schedule:
    """The steps of the cuts: as given, else the preset's for a run of this many steps."""
    if options.at is not None:
        return At(options.at)
    if options.every is not None:
        start, end = options.window or (0, None)
        return Every(options.every, start, end)
    cuts = options.cuts if options.orders is None else len(options.orders)
    if options.window is not None:
        return Window(options.window[0], options.window[1], cuts or 4)
    try:
        schedule = chosen.schedule(steps)
    except ConfigError as error:
        raise ConfigError(
            f"A run of training.steps={steps} is too short for the cuts of the preset {chosen.name!r}; give their "
            "steps with --at, or with --window and --cuts, or raise --steps (--no-compress makes no cuts)."
        ) from error
    return replace(schedule, cuts=cuts) if cuts is not None and isinstance(schedule, Window) else schedule


def require_reachable_cuts(options: CompressionConfig, steps: int) -> None:
    """Refuse the settings of a new run where cuts that they ask for can never happen in its `steps` steps.

    Raises:
        ConfigError: a step of a cut lies after the end of the run, or `orders` has more entries than there are cuts.
    """
    if not options.enabled:
        return
    run, longer = f"training.steps is {steps}", "raise training.steps (--steps)"
    late = [step for step in options.at or () if step > steps]
    if late:
        listed = ", ".join(map(str, late))
        raise ConfigError(
            f"compression.at asks for cuts at {listed}, but {run}: they would never be made. Give steps of at most "
            f"{steps} (--at), or {longer}."
        )
    first, last = options.window or (0, steps)
    if last > steps:
        raise ConfigError(
            f"compression.window ends at {last}, but {run}: its last cuts would never be made. Let it end at {steps} "
            f"at most (--window), or {longer}."
        )
    if options.every is not None and first + options.every > last:
        window = "" if options.window is None else f" and compression.window is {first},{last}"
        raise ConfigError(
            f"compression.every is {options.every}, but {run}{window}: no cut would ever be made. Give fewer steps "
            f"between cuts (--every), or {longer if options.window is None else 'a longer --window'}."
        )
    schedule = build_schedule(options, preset(options.preset.value), steps)
    orders, cuts = len(options.orders or ()), schedule.count(steps)
    if orders > cuts:
        raise ConfigError(
            f"compression.orders has {orders} orders, but only {cuts} cuts are scheduled within the run "
            f"({run}{'' if options.every is None else f', compression.every is {options.every}'}): the last orders "
            f"would never be reached. Give {cuts} orders (--orders), cut more often, or {longer}."
        )
