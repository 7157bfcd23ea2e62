"""`digits`: 1,797 real handwritten digits of 8 x 8 pixels, shipped inside scikit-learn, as sequences of 64."""

from __future__ import annotations

import numpy as np

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.normalisation import Normalisation, Scaling
from compressm.data.splits import holdout
from compressm.errors import DataError

_HELD_OUT = 0.15  # of all cases, for the test split and again for validation


def load_digits(scaling: Scaling = Scaling.STANDARD, seed: int = 0) -> Dataset:
    """The UCI "Optical Recognition of Handwritten Digits" test set as scikit-learn ships it, row by row.

    1,797 cases of 64 steps, 1 channel, 10 classes; stratified 70 / 15 / 15 % for training, validation and test,
    fixed by `seed`. Nothing is downloaded.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError("The data set 'digits' needs scikit-learn: pip install 'compressm[cli]'.") from error
    x, y = load(return_X_y=True)
    x = np.asarray(x, dtype=np.uint8).reshape(-1, 64, 1)  # grey levels 0..16
    y = np.asarray(y, dtype=np.int64)
    rest, test = holdout(y, _HELD_OUT, seed, stratify=True)
    train, validation = holdout(y[rest], _HELD_OUT / (1 - _HELD_OUT), seed + 1, stratify=True)
    full = Split(Sequences(x), y)
    training = full.take(rest[train])
    return Dataset(
        name="digits",
        task=Task.CLASSIFY,
        train=training,
        validation=full.take(rest[validation]),
        test=full.take(test),
        normalisation=Normalisation.fit(training.x.values, scaling),
        class_names=tuple(str(digit) for digit in range(10)),
    )
