"""What is measured once a run is complete: the test split, the final spectra, the time of a training step."""

from __future__ import annotations

import statistics
import time

import torch

from compressm.adapters.calibration import Calibration
from compressm.cli.build import build_model, build_optimizer, build_settings
from compressm.cli.config import RunConfig
from compressm.cli.console import Terminal
from compressm.cli.folder import RunFolder
from compressm.cli.objective import Objective
from compressm.cli.results import Results
from compressm.cli.stored import StoredModel, evaluate_stored, open_stored
from compressm.cli.stored_analysis import calibrate
from compressm.compress import analyze
from compressm.data.batching import Batcher
from compressm.data.dataset import Dataset
from compressm.errors import CompressmError
from compressm.layers.model import SequenceModel
from compressm.training.presets import preset
from compressm.training.summary import TrainingSummary

_WARM_UP, _ROUNDS, _SECONDS = 3, 30, 8.0


def close(
    folder: RunFolder, config: RunConfig, dataset: Dataset, taken: TrainingSummary, terminal: Terminal
) -> Results:
    """Measure, and write results.json, with what the run has taken. Its model and checkpoints are left as they are."""
    stored = open_stored(folder.path)
    test = evaluate_stored(stored, dataset, dataset.test, terminal)
    terminal.say("Measuring the time of a training step, uncompressed and at the end")
    full, end = _step_times(stored, config, dataset)
    results = Results(test, _spectra(stored, config, dataset, terminal), full, end, taken.to_dict())
    results.write(folder.path)
    return results


def _spectra(stored: StoredModel, config: RunConfig, dataset: Dataset, terminal: Terminal) -> dict[str, list[float]]:
    """Under the Gramians of the run's own cuts; empty where a layer cannot be analysed."""
    calibration: Calibration = calibrate(stored, dataset, 2, terminal)
    settings = build_settings(config.compression, preset(config.compression.preset.value))
    try:
        plan = analyze(stored.model, settings, calibration=calibration)
    except CompressmError as error:
        terminal.say(f"No final spectra: {error}")
        return {}
    return {layer.name: list(layer.hankel_singular_values) for layer in plan.layers}


def _step_times(stored: StoredModel, config: RunConfig, dataset: Dataset) -> tuple[float | None, float]:
    """Median seconds of a training step of a fresh uncompressed model and of the stored one, taken in turns."""
    models = [open_stored(stored.path).model]
    full = build_model(stored.model.config, config.training.seed)
    if sum(p.numel() for p in full.parameters()) != sum(p.numel() for p in models[0].parameters()):
        models.append(full)
    batcher, objective = Batcher(dataset, config.training.batch_size, config.training.seed), Objective.of(dataset)
    trained = [(model.train(), build_optimizer(model, config.training)) for model in models]
    times: list[list[float]] = [[] for _ in models]
    began = time.perf_counter()
    for round_number in range(_WARM_UP + _ROUNDS):
        for (model, optimizer), seconds in zip(trained, times, strict=True):
            seconds.append(_step(model, optimizer, batcher, objective, round_number))
        if round_number > _WARM_UP and time.perf_counter() - began > _SECONDS:
            break
    medians = [statistics.median(seconds[_WARM_UP:]) for seconds in times]
    return (medians[1] if len(medians) == 2 else None), medians[0]


def _step(
    model: SequenceModel, optimizer: torch.optim.Optimizer, batcher: Batcher, objective: Objective, number: int
) -> float:
    batch = batcher.training(number)
    began = time.perf_counter()
    loss = objective.loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began
