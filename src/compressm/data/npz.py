"""A user's own arrays from one `.npz` file.

| key | shape | meaning |
| --- | --- | --- |
| `X` | `(cases, L, channels)` or `(cases, L)` | sequences of equal length; real numbers, all finite |
| `X`, `offsets` | `(steps, channels)`, `(cases + 1,)` | different lengths: case i is `X[offsets[i]:offsets[i + 1]]` |
| `y` | `(cases,)` integers | classes 0, 1, ..., K - 1 |
| `y` | `(cases,)` or `(cases, outputs)` floats | values to predict |
| `y` | `(cases, L, outputs)` floats | values to predict at each step, for sequences of equal length |
| `X_test`, `y_test`, `offsets_test` | as above | the test split; held out where not given |
| `X_validation`, `y_validation`, `offsets_validation` | as above | the validation split; held out where not given |

Written by `numpy.savez("my.npz", X=X, y=y)`. Object arrays are refused: nothing is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.normalisation import Normalisation, Scaling
from compressm.data.splits import holdout
from compressm.errors import DataError

_KEYS = frozenset(f"{key}{part}" for key in ("X", "y", "offsets") for part in ("", "_test", "_validation"))
_HELD_OUT = 0.15


def load_npz(path: Path, scaling: Scaling = Scaling.STANDARD, seed: int = 0) -> Dataset:
    """Read a data set in the form that this module's docstring gives; missing splits are held out by `seed`.

    Each held-out split takes 15 % of the cases, class by class.

    Raises:
        DataError: the file or one of its arrays does not have the documented form; the message names the array.
    """
    arrays = _read(path)
    full = _split(arrays, "", path)
    classes = full.y.dtype.kind == "i"
    task = Task.CLASSIFY if classes else Task.SEQUENCE if full.y.ndim == 3 else Task.REGRESS
    if classes:
        _require_as_many_cases(full.y, full.cases, "y", path)
    parts: dict[str, Split] = {}
    for number, name in enumerate(("test", "validation")):
        if f"X_{name}" in arrays or f"y_{name}" in arrays:
            parts[name] = _split(arrays, f"_{name}", path)
            _check_alike(full, parts[name], name, path)
            if classes:
                _require_as_many_cases(parts[name].y, len(arrays["y"]), f"y_{name}", path)
        else:
            strata = full.y if classes else np.zeros(full.cases)
            rest, held = holdout(strata, _HELD_OUT, seed + number, stratify=classes)
            parts[name], full = full.take(held), full.take(rest)
    return Dataset(
        name=path.stem,
        task=task,
        train=full,
        validation=parts["validation"],
        test=parts["test"],
        normalisation=Normalisation.fit(full.x.values, scaling),
        class_names=_class_names(full, parts, path) if classes else (),
        target_normalisation=None if classes else Normalisation.fit(full.y, Scaling.STANDARD),
    )


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file; wanted a .npz file with the arrays X and y.")
    try:
        with path.open("rb") as stream:
            single = stream.read(6) == b"\x93NUMPY"
        if not single and not zipfile.is_zipfile(path):
            raise DataError(
                f"{path} cannot be read as a .npz file: it is no zip archive, or was cut off. Write it with "
                "numpy.savez(path, X=X, y=y)."
            )
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array; wanted a .npz file with X and y (numpy.savez).")
            unknown = sorted(set(archive.files) - _KEYS)
            if unknown:
                raise DataError(f"{path} holds {', '.join(unknown)}; known arrays are {', '.join(sorted(_KEYS))}.")
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a .npz file: {error}.") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        remedy = "Store numbers, not objects: sequences of different lengths go into one flat X with offsets."
        reason = str(error).rstrip(".")
        raise DataError(f"{path} holds an array that cannot be read without unpickling: {reason}. {remedy}") from error


def _split(arrays: Mapping[str, NDArray[np.generic]], part: str, path: Path) -> Split:
    for key in (f"X{part}", f"y{part}"):
        if key not in arrays:
            raise DataError(f"{path} has no array {key}; found {', '.join(sorted(arrays)) or 'nothing'}.")
    x, offsets = arrays[f"X{part}"], arrays.get(f"offsets{part}")
    if x.ndim == 2 and offsets is None:
        x = x[:, :, None]  # one channel
    try:
        sequences = Sequences(x, None if offsets is None else _integers(offsets))
        if np.abs(x.astype(np.float64)).max() > np.finfo(np.float32).max:
            raise DataError("X has values outside the range of single precision (3.4e38); rescale them first.")
        return Split(sequences, _targets(arrays[f"y{part}"], sequences.cases))
    except DataError as error:
        raise DataError(f"{path}, X{part} / y{part}: {error}") from error


def _integers(offsets: NDArray[np.generic]) -> NDArray[np.int64]:
    if offsets.dtype.kind not in "iu":
        raise DataError(f"offsets are {offsets.dtype}; wanted integers.")
    return offsets.astype(np.int64)


def _targets(y: NDArray[np.generic], cases: int) -> NDArray[np.int64] | NDArray[np.float32]:
    if y.ndim == 0 or len(y) != cases:
        raise DataError(f"y has shape {y.shape} for {cases} sequences; wanted one target for each sequence.")
    if y.dtype.kind in "iu":
        if y.ndim != 1:
            raise DataError(f"y has integers of shape {y.shape}; wanted classes (cases,), or floats for values.")
        if int(y.min()) < 0:
            raise DataError(f"y has the class {int(y.min())}; classes are counted from 0.")
        return y.astype(np.int64)
    if y.dtype.kind != "f":
        raise DataError(f"y holds {y.dtype}; wanted integers (classes) or floats (values).")
    if y.ndim > 3 or y.size == 0:
        raise DataError(
            f"y has shape {y.shape}; wanted (cases,) or (cases, outputs), one vector for each sequence, or (cases, L, "
            f"outputs), one for each step."
        )
    if not np.isfinite(y).all():
        raise DataError(f"y has {int((~np.isfinite(y)).sum())} values that are NaN or infinite.")
    return (y if y.ndim == 3 else y.reshape(cases, -1)).astype(np.float32)


def _check_alike(full: Split, other: Split, name: str, path: Path) -> None:
    if other.x.channels != full.x.channels:
        raise DataError(f"{path}: X_{name} has {other.x.channels} channels, X has {full.x.channels}; wanted the same.")
    alike = other.y.ndim == full.y.ndim and (full.y.ndim == 1 or other.y.shape[-1] == full.y.shape[-1])
    if other.y.dtype.kind != full.y.dtype.kind or not alike:
        raise DataError(
            f"{path}: y_{name} is {other.y.dtype} {other.y.shape}, y is {full.y.dtype} {full.y.shape}; "
            "wanted the same kind."
        )


def _require_as_many_cases(y: NDArray[np.int64] | NDArray[np.float32], cases: int, key: str, path: Path) -> None:
    """Every class needs a training case; a label far beyond them must not become a count of classes."""
    largest = int(y.max())
    if largest + 1 > cases:
        raise DataError(
            f"{path}: {key} has the class {largest}, but there are {cases} training cases; wanted classes below "
            f"{cases}. Number the classes 0, 1, ..., K - 1 without gaps (numpy.unique(y, return_inverse=True)[1])."
        )


def _class_names(full: Split, parts: Mapping[str, Split], path: Path) -> tuple[str, ...]:
    count = max(int(split.y.max()) for split in (full, *parts.values())) + 1
    if count < 2:
        raise DataError(f"{path}: y has one class only; wanted at least two (or floats for values).")
    found = np.unique(full.y)
    missing = count - len(found)
    if missing:
        gaps = np.flatnonzero(found != np.arange(len(found)))
        first = int(gaps[0]) if len(gaps) else len(found)
        raise DataError(
            f"{path}: no training case has class {first} ({missing} of {count} classes are missing); "
            "number the classes 0, 1, ..., K - 1 without gaps."
        )
    return tuple(str(value) for value in range(count))
