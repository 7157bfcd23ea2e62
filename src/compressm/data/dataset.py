"""One form for every data set: sequences with a class, a vector of values or a sequence of such each, in three splits.

Values stay in the dtype they are stored in (uint8 images stay uint8); the recorded normalisation is applied when a
batch is made, so that a large set is never held twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from compressm.data.normalisation import Normalisation
from compressm.errors import DataError


class Task(Enum):
    """What is predicted from a sequence."""

    CLASSIFY = "classify"  # one class
    REGRESS = "regress"  # one vector of values
    SEQUENCE = "sequence"  # one vector of values a step


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of equal or different lengths.

    `values` is `(cases, L, channels)` where `offsets` is None. Otherwise it is `(steps, channels)`, all sequences one
    after the other, and case i is `values[offsets[i] : offsets[i + 1]]` with `offsets` `(cases + 1,)`.

    Raises:
        DataError: shapes do not fit, a sequence is empty, or the values are not finite numbers.
    """

    values: NDArray[np.generic]
    offsets: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check shapes, offsets and values."""
        wanted = 3 if self.offsets is None else 2
        form = "(cases, L, channels)" if self.offsets is None else "(steps, channels) with offsets"
        if self.values.ndim != wanted:
            raise DataError(f"Sequences have shape {self.values.shape}; wanted {form}.")
        if 0 in self.values.shape:
            raise DataError(f"Sequences have shape {self.values.shape}: there is nothing in them; wanted {form}.")
        if self.values.dtype.kind not in "biuf":
            raise DataError(f"Sequences hold {self.values.dtype}; wanted real numbers (float, integer or bool).")
        if self.values.dtype.kind == "f" and not np.isfinite(self.values).all():
            bad = int((~np.isfinite(self.values)).sum())
            raise DataError(f"Sequences hold {bad} values that are NaN or infinite; remove or fill them first.")
        if self.offsets is not None:
            _check_offsets(self.offsets, len(self.values))

    @property
    def cases(self) -> int:
        """The number of sequences."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def channels(self) -> int:
        """The number of values at each step."""
        return int(self.values.shape[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of steps of each sequence `(cases,)`."""
        if self.offsets is None:
            return np.full(len(self.values), self.values.shape[1], dtype=np.int64)
        return np.diff(self.offsets)

    def take(self, indices: NDArray[np.int64]) -> Sequences:
        """The sequences `indices`, in that order."""
        if self.offsets is None:
            return Sequences(self.values[indices])
        lengths = self.lengths[indices]
        parts = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        return Sequences(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Split:
    """Sequences and their targets.

    Targets are classes `(cases,)` int64, values `(cases, outputs)` float32, or sequences of values
    `(cases, L, outputs)` float32 beside sequences of equal length L.
    """

    x: Sequences
    y: NDArray[np.int64] | NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that there is one target for each sequence."""
        if len(self.y) != self.x.cases:
            raise DataError(f"There are {self.x.cases} sequences but {len(self.y)} targets; wanted one target each.")
        if self.y.ndim == 3 and (self.x.offsets is not None or self.y.shape[1] != self.x.values.shape[1]):
            raise DataError(
                f"Targets have shape {self.y.shape} for sequences {self.x.values.shape}; a target for each step needs "
                f"sequences of one length, (cases, L, outputs) beside (cases, L, channels)."
            )

    @property
    def cases(self) -> int:
        """The number of sequences."""
        return self.x.cases

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The cases `indices`, in that order."""
        return Split(self.x.take(indices), self.y[indices])


_TARGETS: Mapping[Task, tuple[type[np.generic], int, str]] = {
    Task.CLASSIFY: (np.int64, 1, "classes (cases,) in int64"),
    Task.REGRESS: (np.floating, 2, "values (cases, outputs), floats"),
    Task.SEQUENCE: (np.floating, 3, "values (cases, L, outputs), floats"),
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: three splits, what is predicted, and the normalisation fitted on the training split.

    `class_names` is empty and `target_normalisation` is set for values, and the other way round for classes. For
    `Task.SEQUENCE` the first `washout` steps of every sequence are neither trained on nor scored: a model that starts
    from a zero state does not know what came before.

    Raises:
        DataError: the splits do not fit each other or the task, the washout leaves nothing to score, or, for
            `Task.SEQUENCE`, an output is constant over the scored steps of a split, so that its error relative to its
            deviation is not defined. The message names the split.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    normalisation: Normalisation
    class_names: tuple[str, ...] = ()
    target_normalisation: Normalisation | None = None
    washout: int = 0

    def __post_init__(self) -> None:
        """Check the splits against the task and each other, and the washout."""
        for part, split in self._parts():
            self._check_split(part, split)
        shortest = min(int(split.x.lengths.min()) for split in self.splits())
        most = shortest - 1 if self.task is Task.SEQUENCE else 0
        if not 0 <= self.washout <= most:
            raise DataError(f"{self.name}: washout is {self.washout}; wanted 0 to {most} steps.")
        if self.task is Task.SEQUENCE:
            for part, split in self._parts():
                self._check_deviation(part, split)

    @property
    def channels(self) -> int:
        """The number of values at each step."""
        return self.train.x.channels

    @property
    def outputs(self) -> int:
        """The number of classes, or of values to predict."""
        return len(self.class_names) if self.task is Task.CLASSIFY else int(self.train.y.shape[-1])

    @property
    def ragged(self) -> bool:
        """Whether sequences may have different lengths, so that batches carry lengths."""
        return any(split.x.offsets is not None for split in self.splits())

    @property
    def max_length(self) -> int:
        """The number of steps of the longest sequence."""
        return max(int(split.x.lengths.max()) for split in self.splits())

    def splits(self) -> Iterator[Split]:
        """Training, validation and test split, in this order."""
        yield from (self.train, self.validation, self.test)

    def _parts(self) -> Iterator[tuple[str, Split]]:
        return zip(("training", "validation", "test"), self.splits(), strict=True)

    def _check_split(self, part: str, split: Split) -> None:
        where = f"{self.name}, {part} split"
        if split.x.channels != self.channels:
            raise DataError(f"{where}: {split.x.channels} channels; wanted {self.channels}, as in the training split.")
        kind, ndim, wanted = _TARGETS[self.task]
        if not np.issubdtype(split.y.dtype, kind) or split.y.ndim != ndim:
            raise DataError(f"{where}: targets are {split.y.dtype} {split.y.shape}; wanted {wanted}.")
        if self.task is Task.CLASSIFY:
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.outputs:
                bad = low if low < 0 else high
                raise DataError(f"{where}: a case has the class {bad}; wanted 0 to {self.outputs - 1}.")
        elif split.y.shape[-1] != self.outputs:
            raise DataError(f"{where}: {split.y.shape[-1]} outputs; wanted {self.outputs}, as in the training split.")
        elif not np.isfinite(split.y).all():
            bad = int((~np.isfinite(split.y)).sum())
            raise DataError(f"{where}: {bad} targets are NaN or infinite; remove or fill them first.")

    def _check_deviation(self, part: str, split: Split) -> None:
        y = split.y[:, self.washout :].astype(np.float32)
        y = (y if self.target_normalisation is None else self.target_normalisation.apply(y)).reshape(-1, self.outputs)
        constant = np.flatnonzero((y == y[0]).all(axis=0))
        if len(constant):
            raise DataError(
                f"{self.name}, {part} split: output {constant[0]} (counted from 0) is constant over all scored steps, "
                f"so that its error has no scale to be measured by. Leave the output out, or give a split in which it "
                f"varies."
            )

    def fingerprint(self) -> str:
        """The SHA-256 of all arrays and the normalisation; equal data give an equal fingerprint."""
        described = (self.task.value, self.normalisation, self.target_normalisation)
        digest = hashlib.sha256(repr((*described, self.washout) if self.washout else described).encode())
        for split in self.splits():
            for array in (split.x.values, split.x.offsets, split.y):
                if array is not None:
                    digest.update(f"{array.dtype.str}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _check_offsets(offsets: NDArray[np.int64], steps: int) -> None:
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise DataError(f"offsets are {offsets.dtype} {offsets.shape}; wanted integers (cases + 1,).")
    if offsets[0] != 0 or offsets[-1] != steps:
        raise DataError(
            f"offsets run from {offsets[0]} to {offsets[-1]}; wanted 0 to {steps}, the number of rows of X. "
            "Case i is X[offsets[i] : offsets[i + 1]]."
        )
    short = np.flatnonzero(np.diff(offsets.astype(np.int64)) < 1)
    if len(short):
        raise DataError(f"Sequence {short[0]} has no steps (offsets must grow); {len(short)} such sequences in all.")
