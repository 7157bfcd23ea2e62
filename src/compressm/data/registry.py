"""Data sets by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from compressm.data.dataset import Dataset
from compressm.data.digits import load_digits
from compressm.data.fsdd import load_fsdd
from compressm.data.mnist import ProgressFactory, load_smnist
from compressm.data.normalisation import Scaling
from compressm.data.npz import load_npz
from compressm.data.sysid import RECORDS, load_sysid
from compressm.data.ucr import load_ucr
from compressm.errors import DataError

DATASETS = ("digits", "smnist", "fsdd", *RECORDS)
"""The names that `load_dataset` knows beside `ucr:NAME`; a user's own arrays are given by a path instead."""

UCR = "ucr:"
"""What the name of a set of the UCR / UEA archive begins with."""


def require_known(name: str) -> None:
    """Raise DataError, with the nearest name, unless `load_dataset` knows this one."""
    if name not in DATASETS and not name.startswith(UCR):
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"Unknown data set {name!r}; known are {', '.join(DATASETS)}, {UCR}NAME, or --data my.npz.{hint}"
        )


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
    require_known(name)
    if name == "digits":
        return load_digits(scaling, seed)
    if name == "smnist":
        return load_smnist(scaling, seed, progress)
    if name == "fsdd":
        return load_fsdd(scaling, seed)
    if name.startswith(UCR):
        return load_ucr(name.removeprefix(UCR), scaling, seed)
    return load_sysid(name, scaling)
