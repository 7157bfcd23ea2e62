"""Measured systems of system identification: the output at each step is predicted from the inputs up to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.locations import DATA_VARIABLE, find_file, read_arrays
from compressm.data.normalisation import Normalisation, Scaling
from compressm.errors import DataError

_VALIDATION = 0.15  # the end of the training record
_Range = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """How one system is stored in `$COMPRESSM_DATA/sysid/FILE.npz`, and how it is cut up.

    `train` and `test` are (first, end) steps of the arrays `inputs` and `outputs`; where `test` is None the arrays of
    the test record are called `_test` instead of `_train`. Every `decimate`-th step is kept. Training uses windows of
    `window` steps that overlap by three quarters; the first `washout` steps of every sequence are neither trained on
    nor scored.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    train: _Range
    test: _Range | None
    window: int
    washout: int
    decimate: int = 1


RECORDS: Mapping[str, Record] = {
    "wiener-hammerstein": Record("wiener_hammerstein_2009", ("u",), ("y",), (5200, 105200), (105200, 184000), 512, 100),
    "cascaded-tanks": Record("cascaded_tanks", ("u_train",), ("y_train",), (0, 1024), None, 256, 50),
    "pick-and-place": Record("pick_and_place", ("u",), ("y",), (0, 50000), (50000, 60001), 512, 100, 10),
    "f16": Record("f16_subset", ("x1", "x2"), ("y",), (0, 16384), (16384, 32768), 512, 100),
    "heat-exchanger": Record("daisy", ("heat_exchanger_u",), ("heat_exchanger_y",), (0, 2000), (2000, 4000), 256, 50),
    "ball-beam": Record("daisy", ("ball_beam_u",), ("ball_beam_y",), (0, 600), (600, 1000), 128, 30),
    "robot-arm": Record("daisy", ("robot_arm_u",), ("robot_arm_y",), (0, 614), (614, 1024), 128, 30),
}
"""Wiener-Hammerstein circuit (Schoukens et al. 2009), cascaded tanks (Schoukens and Noel 2017), pick-and-place machine
(Juloski et al. 2004) with their official splits; one record of the F-16 ground vibration test (Noel and Schoukens
2017); three systems of the DaISy collection (De Moor 1997), which have no official split."""


def load_sysid(name: str, scaling: Scaling = Scaling.STANDARD) -> Dataset:
    """A measured system by its name in `RECORDS`, for `Task.SEQUENCE`.

    Training: windows of the training record without its last 15 %, which are the validation record; test: the whole
    test record as one sequence. No split is random.

    Raises:
        DataError: the name is unknown, or the file is not there or not what it should be.
    """
    if name not in RECORDS:
        raise DataError(f"Unknown system {name!r}; known are {', '.join(RECORDS)}.")
    record = RECORDS[name]
    arrays = _read(record, name)
    x, y = _part(arrays, record.inputs, record.train, record), _part(arrays, record.outputs, record.train, record)
    if record.test is None:
        whole = (0, len(arrays[_test(record.inputs)[0]]))
        test = _part(arrays, _test(record.inputs), whole, record), _part(arrays, _test(record.outputs), whole, record)
    else:
        test = _part(arrays, record.inputs, record.test, record), _part(arrays, record.outputs, record.test, record)
    end = len(x) - round(_VALIDATION * len(x))
    training = Split(Sequences(_windows(x[:end], record.window)), _windows(y[:end], record.window))
    return Dataset(
        name=name,
        task=Task.SEQUENCE,
        train=training,
        validation=Split(Sequences(x[None, end:]), y[None, end:]),
        test=Split(Sequences(test[0][None]), test[1][None]),
        normalisation=Normalisation.fit(x[:end], scaling),
        target_normalisation=Normalisation.fit(y[:end], Scaling.STANDARD),
        washout=record.washout,
    )


def _read(record: Record, name: str) -> Mapping[str, NDArray[np.generic]]:
    keys = record.inputs + record.outputs + (() if record.test else _test(record.inputs + record.outputs))
    remedy = (
        f"Put the measured record into ${DATA_VARIABLE}/sysid/{record.file}.npz with the arrays {', '.join(keys)} of "
        f"one value a step (numpy.savez). See docs/howto/data-sets.md for where it is given out."
    )
    arrays = read_arrays(find_file([("sysid", f"{record.file}.npz")], name, remedy), keys)
    for key, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise DataError(f"{name}: {key} is {array.dtype} {array.shape}; wanted finite numbers (steps,).")
    signals = record.inputs + record.outputs
    end = max(record.train[1], 0 if record.test is None else record.test[1])
    _require_whole({key: arrays[key] for key in signals}, end, name)
    if record.test is None:
        _require_whole({key: arrays[key] for key in _test(signals)}, record.window, name)
    return arrays


def _require_whole(signals: Mapping[str, NDArray[np.generic]], least: int, name: str) -> None:
    """Raise DataError unless the signals of one record are equally long and have at least so many steps."""
    lengths = {key: len(array) for key, array in signals.items()}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < least:
        found = ", ".join(f"{key} has {length} steps" for key, length in lengths.items())
        raise DataError(
            f"{name}: {found}; wanted equally many, at least {least}. The record was cut off or is another one: "
            f"replace the file."
        )


def _part(
    arrays: Mapping[str, NDArray[np.generic]], keys: tuple[str, ...], steps: _Range, record: Record
) -> NDArray[np.float32]:
    """The arrays `keys` between two steps `(L, channels)`."""
    return np.stack([arrays[key][steps[0] : steps[1] : record.decimate].astype(np.float32) for key in keys], -1)


def _test(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key.replace("_train", "_test") for key in keys)


def _windows(values: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Windows `(cases, window, channels)` that overlap by three quarters."""
    starts = range(0, len(values) - window + 1, window // 4)
    return np.stack([values[start : start + window] for start in starts])
