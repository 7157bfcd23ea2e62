"""The data of a run, for training and for a stored model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compressm.cli.config import DataConfig
from compressm.cli.console import Terminal
from compressm.cli.stored import StoredModel
from compressm.data.dataset import Dataset, Task
from compressm.data.registry import load_dataset
from compressm.errors import DataError
from compressm.layers.config import Task as HeadTask


def load_data(config: DataConfig, terminal: Terminal) -> Dataset:
    """The data set of a run, downloaded (with a bar) where needed."""
    with terminal.downloads() as progress:
        path = Path(config.path) if config.path is not None else None
        return load_dataset(
            config.dataset, path=path, scaling=config.scaling, seed=config.split_seed, progress=progress
        )


def load_data_of(stored: StoredModel, path: Path | None, terminal: Terminal) -> Dataset:
    """The data that a model was trained on, or the user's own arrays at `path` in their place.

    Raises:
        DataError: the data cannot be had, or do not fit the model.
    """
    config = stored.config.data
    dataset = load_data(config if path is None else replace(config, path=str(path)), terminal)
    wanted = stored.model.config.inputs, stored.model.config.outputs
    if (dataset.channels, dataset.outputs) != wanted:
        raise DataError(
            f"{dataset.name} has {dataset.channels} channels and {dataset.outputs} outputs, but the model was made for "
            f"{wanted[0]} and {wanted[1]}."
        )
    found, made = dataset.task is Task.SEQUENCE, stored.model.config.task is HeadTask.SEQUENCE
    if found is not made:
        names = {True: "values at each step", False: "one target a sequence"}
        raise DataError(f"{dataset.name} has {names[found]} to predict, but the model was made for {names[made]}.")
    return dataset
