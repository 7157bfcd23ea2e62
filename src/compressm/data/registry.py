"""Data sets by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from compressm.data.dataset import Dataset
from compressm.data.digits import load_digits
from compressm.data.mnist import ProgressFactory, load_smnist
from compressm.data.normalisation import Scaling
from compressm.data.npz import load_npz
from compressm.errors import DataError

DATASETS = ("digits", "smnist")
"""The names that `load_dataset` knows; a user's own arrays are given by a path instead."""


def load_dataset(
    name: str,
    *,
    path: Path | None = None,
    scaling: Scaling = Scaling.STANDARD,
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> Dataset:
    """Load a data set by name, or a user's own arrays where `path` names a `.npz` file (`name` is ignored then).

    `seed` fixes the splits that are not official. `progress` shows a download.

    Raises:
        DataError: the name is unknown, or the data cannot be had or are not sound.
    """
    if path is not None:
        return load_npz(path, scaling, seed)
    if name == "digits":
        return load_digits(scaling, seed)
    if name == "smnist":
        return load_smnist(scaling, seed, progress)
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"Unknown data set {name!r}; known are {', '.join(DATASETS)}, or --data my.npz.{hint}")
