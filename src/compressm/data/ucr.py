"""`ucr:NAME`: any set of the UCR and UEA archives of time series classification, with its official splits."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.locations import DATA_VARIABLE, find_file, read_arrays
from compressm.data.normalisation import Normalisation, Scaling
from compressm.data.splits import holdout
from compressm.errors import DataError

_VALIDATION = 0.2
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def load_ucr(name: str, scaling: Scaling = Scaling.STANDARD, seed: int = 0) -> Dataset:
    """A set of the UCR / UEA archive (Dau et al. 2019; Bagnall et al. 2018): sequences of equal length, and classes.

    The official training and test splits; a fifth of the training cases (stratified, by `seed`) is for validation. Read
    from `$COMPRESSM_DATA/ucr`: NAME/NAME_TRAIN.ts and NAME/NAME_TEST.ts as the archive gives them out, or one NAME.npz
    (X_train and X_test (cases, L, channels), y_train and y_test from 0, class_names).

    Raises:
        DataError: the files are not there, or hold missing values or sequences of different lengths.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"ucr:{name} names no data set; wanted a name of the archive, as in ucr:GunPoint.")
    folders = ("ucr", "uea_ucr")
    packed, plain = [(f, f"{name}.npz") for f in folders], [(f, f"{name}/{name}_TRAIN.ts") for f in folders]
    remedy = f"Get it from timeseriesclassification.com and unpack it into ${DATA_VARIABLE}/ucr/{name}."
    path = find_file(packed + plain, f"ucr:{name}", remedy)
    train, test, names = _read_packed(path) if path.suffix == ".npz" else _read_text(path)
    rest, held = holdout(train.y, _VALIDATION, seed, stratify=True)
    training = train.take(rest)
    return Dataset(
        name=f"ucr-{name}",
        task=Task.CLASSIFY,
        train=training,
        validation=train.take(held),
        test=test,
        normalisation=Normalisation.fit(training.x.values, scaling),
        class_names=names,
    )


def _read_packed(path: Path) -> tuple[Split, Split, tuple[str, ...]]:
    arrays = read_arrays(path, ("X_train", "y_train", "X_test", "y_test", "class_names"))
    splits: list[Split] = []
    for part in ("train", "test"):
        x, y = arrays[f"X_{part}"], arrays[f"y_{part}"]
        if y.dtype.kind not in "iu" or y.ndim != 1:
            raise DataError(f"{path}: y_{part} is {y.dtype} {y.shape}; wanted integers (cases,).")
        try:
            splits.append(Split(Sequences(x), y.astype(np.int64)))
        except DataError as error:
            raise DataError(f"{path}, X_{part} / y_{part}: {error}") from error
    names = arrays["class_names"]
    if names.ndim != 1:
        raise DataError(f"{path}: class_names has shape {names.shape}; wanted one name a class.")
    return splits[0], splits[1], tuple(str(name) for name in names)


def _read_text(path: Path) -> tuple[Split, Split, tuple[str, ...]]:
    other = path.with_name(path.name.replace("_TRAIN.ts", "_TEST.ts"))
    if not other.exists():
        raise DataError(f"{other} is missing beside {path.name}. Unpack the whole archive there.")
    (train_x, train_y), (test_x, test_y) = _parse(path), _parse(other)
    names = tuple(sorted(set(train_y) | set(test_y)))
    numbers = {label: i for i, label in enumerate(names)}
    train, test = (
        Split(Sequences(x), np.array([numbers[label] for label in y], dtype=np.int64))
        for x, y in ((train_x, train_y), (test_x, test_y))
    )
    return train, test, names


def _parse(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """The cases of a .ts file: after @data a line each, channels separated by ":", the class last."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    starts = [i for i, line in enumerate(lines) if line.lower() == "@data"]
    if not starts:
        raise DataError(f"{path} has no line @data; wanted a .ts file of the archive.")
    cases: list[list[list[float]]] = []
    labels: list[str] = []
    for number, line in enumerate(lines[starts[0] + 1 :], starts[0] + 2):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        *channels, label = line.split(":")
        try:
            values = [[float(value) for value in channel.split(",")] for channel in channels]
        except ValueError as error:
            raise DataError(f"{where}: {error}; missing values and time stamps are not read.") from error
        if not channels or any(not math.isfinite(v) for channel in values for v in channel):
            raise DataError(f"{where}: wanted finite values and a class, separated by colons.")
        first = cases[0] if cases else values
        if len(values) != len(first):
            raise DataError(f"{where}: {len(values)} channels, but {len(first)} in the first case; wanted as many.")
        if odd := [len(channel) for channel in values if len(channel) != len(first[0])]:
            raise DataError(
                f"{where}: a sequence of {odd[0]} steps, but {len(first[0])} in the first case; sets with sequences of "
                f"different lengths are not read from the archive's files. Give such data as --data FILE.npz with "
                f"offsets."
            )
        cases.append(values)
        labels.append(label.strip())
    if not cases:
        raise DataError(f"{path} has no case after the line @data. Get the file again.")
    return np.array(cases, dtype=np.float32).transpose(0, 2, 1), labels
