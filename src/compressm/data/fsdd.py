"""`fsdd`: 3,000 spoken digits as raw audio, 8,000 samples a second."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.locations import DATA_VARIABLE, find_file, read_arrays
from compressm.data.normalisation import Normalisation, Scaling
from compressm.data.splits import holdout
from compressm.errors import DataError

LONGEST = 8000
"""Samples of a clip that are kept: one second. Of the 3,000 clips 0.7 % are longer."""

_TEST_TAKES = 5  # the official test split: takes 0 to 4 of each digit and speaker
_VALIDATION = 0.1
_RATE = 8000
_REMEDY = (
    f"Clone github.com/Jakobovski/free-spoken-digit-dataset into ${DATA_VARIABLE}/fsdd, so that its folder recordings "
    f"lies there."
)


def load_fsdd(scaling: Scaling = Scaling.STANDARD, seed: int = 0) -> Dataset:
    """The Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): clips of different lengths, 1 channel, 10 classes.

    The official split: takes 0 to 4 of each speaker and digit are the test split (300 of 3,000 clips); of the others a
    tenth (stratified, by `seed`) is for validation. Clips are cut off after `LONGEST` samples. Read from
    `$COMPRESSM_DATA/fsdd`: the folder `recordings` of a clone, or the same samples in one `fsdd.npz` (waveforms int16,
    offsets, labels, is_test).

    Raises:
        DataError: the recordings are not there, or not what they should be.
    """
    path = find_file([("fsdd", "fsdd.npz"), ("fsdd", "recordings")], "fsdd", _REMEDY)
    clips, labels, is_test = _read_recordings(path) if path.is_dir() else _read_packed(path)
    clips = [clip[:LONGEST] for clip in clips]
    offsets = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])]).astype(np.int64)
    full = Split(Sequences(np.concatenate(clips)[:, None], offsets), labels)
    rest, test = full.take(np.flatnonzero(~is_test)), full.take(np.flatnonzero(is_test))
    kept, held = holdout(rest.y, _VALIDATION, seed, stratify=True)
    training = rest.take(kept)
    return Dataset(
        name="fsdd",
        task=Task.CLASSIFY,
        train=training,
        validation=rest.take(held),
        test=test,
        normalisation=Normalisation.fit(training.x.values, scaling),
        class_names=tuple(str(digit) for digit in range(10)),
    )


_Clips = tuple[list[NDArray[np.int16]], NDArray[np.int64], NDArray[np.bool_]]


def _read_packed(path: Path) -> _Clips:
    arrays = read_arrays(path, ("waveforms", "offsets", "labels", "is_test"))
    cases = len(arrays["labels"]) if arrays["labels"].ndim else 0
    for key, kinds, wanted in (
        ("waveforms", "iuf", arrays["waveforms"].shape[:1]),
        ("offsets", "iu", (cases + 1,)),
        ("labels", "iu", (cases,)),
        ("is_test", "biu", (cases,)),
    ):
        if arrays[key].dtype.kind not in kinds or arrays[key].shape != wanted:
            found = f"{arrays[key].dtype} {arrays[key].shape}"
            raise DataError(f"{path}: {key} is {found}; wanted numbers of shape {wanted}. {_REMEDY}")
    waveforms, offsets = arrays["waveforms"].astype(np.int16), arrays["offsets"].astype(np.int64)
    clips = [waveforms[start:end] for start, end in pairwise(offsets)]
    return clips, arrays["labels"].astype(np.int64), arrays["is_test"].astype(np.bool_)


def _read_recordings(folder: Path) -> _Clips:
    """The clips of a clone, from files called {digit}_{speaker}_{take}.wav, in the order digit, speaker, take."""
    named: list[tuple[int, str, int, Path]] = []
    for path in folder.glob("*.wav"):
        digit, _, rest = path.stem.partition("_")
        speaker, _, take = rest.rpartition("_")
        if not (digit.isdigit() and speaker and take.isdigit()):
            raise DataError(f"{path} is not called {{digit}}_{{speaker}}_{{take}}.wav. {_REMEDY}")
        named.append((int(digit), speaker, int(take), path))
    if not named:
        raise DataError(f"{folder} holds no .wav files. {_REMEDY}")
    named.sort()
    labels = np.array([digit for digit, *_ in named], dtype=np.int64)
    is_test = np.array([take < _TEST_TAKES for _, _, take, _ in named])
    return [_read_wave(path) for *_, path in named], labels, is_test


def _read_wave(path: Path) -> NDArray[np.int16]:
    try:
        with wave.open(str(path), "rb") as stream:
            form = stream.getnchannels(), stream.getsampwidth(), stream.getframerate()
            if form != (1, 2, _RATE):
                raise DataError(f"{path} has (channels, bytes, rate) {form}; wanted (1, 2, {_RATE}). {_REMEDY}")
            return np.frombuffer(stream.readframes(stream.getnframes()), dtype="<i2").astype(np.int16)
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}. {_REMEDY}") from error
