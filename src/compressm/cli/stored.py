"""The model in a checkpoint that `compressm train` or `compressm compress` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressm.checkpoint import load_checkpoint, read_structure
from compressm.cli.config import RunConfig
from compressm.cli.console import Terminal
from compressm.cli.folder import find_checkpoints, first_sound
from compressm.cli.objective import Objective
from compressm.cli.parsing import build
from compressm.data.batching import Batcher, evaluation_batch
from compressm.data.dataset import Dataset, Split
from compressm.errors import CheckpointError
from compressm.layers.config import ModelConfig
from compressm.layers.model import SequenceModel
from compressm.training.evaluation import undisturbed

KIND = "compressm run"


@dataclass(frozen=True)
class StoredModel:
    """A model in evaluation mode with its cut shapes, where it lies, and what was written beside it."""

    path: Path
    model: SequenceModel
    config: RunConfig
    extra: dict[str, Any]


def open_stored(path: Path, terminal: Terminal | None = None) -> StoredModel:
    """The model of a checkpoint, or of the newest checkpoint of a run folder that is not damaged.

    Raises:
        CheckpointError: there is none, it is damaged, or the command line did not write it.
    """
    warn = (terminal or Terminal()).warn
    return first_sound(find_checkpoints(path), _open, warn)[0]


def _open(path: Path) -> StoredModel:
    extra = read_structure(path).extra
    if extra.get("kind") != KIND:
        raise CheckpointError(
            f"{path} was not written by the command line, so the model's settings are not in it. "
            "Load it into your own model with compressm.load_checkpoint."
        )
    model = SequenceModel(ModelConfig.from_dict(extra["model"]))
    load_checkpoint(path, model)
    return StoredModel(path, model.eval(), build(RunConfig, extra["config"]), extra)


def evaluate_stored(stored: StoredModel, dataset: Dataset, split: Split, terminal: Terminal) -> dict[str, float]:
    """Metric and loss of the model on one split of `dataset`, with a bar."""
    size = evaluation_batch(dataset.max_length, stored.model.config.width)
    batches = Batcher(dataset, size, 0).in_order(split)
    total = -(-split.cases // size)
    with undisturbed(stored.model):
        return Objective.of(dataset).evaluate(stored.model, terminal.track(batches, total, "Evaluating"))
