"""`smnist`: the 70,000 MNIST digits read pixel by pixel, as sequences of 784."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compressm.data.dataset import Dataset, Sequences, Split, Task
from compressm.data.download import Progress, RemoteFile, download, read_checked
from compressm.data.idx import parse_idx
from compressm.data.locations import DATA_VARIABLE, cache_folder, data_folders
from compressm.data.normalisation import Normalisation, Scaling
from compressm.data.splits import holdout
from compressm.errors import DataError

FILES = {
    "train_x": RemoteFile(
        "train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train_y": RemoteFile(
        "train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "test_x": RemoteFile(
        "t10k-images-idx3-ubyte", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "test_y": RemoteFile(
        "t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}
"""The four official files. The SHA-256 are those of the decompressed bytes, whatever compressed them."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
"""Public addresses. The project's tests run the downloader against a local server; these were not exercised."""

_VALIDATION = 5_000 / 60_000

ProgressFactory = Callable[[str], Progress]
"""Gives a progress callback for the file of the given name."""


def load_smnist(scaling: Scaling = Scaling.STANDARD, seed: int = 0, progress: ProgressFactory | None = None) -> Dataset:
    """Sequential MNIST: 55,000 training, 5,000 validation (stratified, by `seed`) and the 10,000 official test cases.

    The idx files (plain or `.gz`) are read from `$COMPRESSM_DATA/mnist`, else from the cache folder, else they are
    downloaded into the cache folder. Whatever the origin, size and SHA-256 of the decompressed bytes are checked.

    Raises:
        DataError: a file is damaged, or cannot be found or downloaded.
    """
    arrays = {key: parse_idx(_content(file, progress), file.name) for key, file in FILES.items()}
    train_x, test_x = (arrays[key].reshape(-1, 784, 1) for key in ("train_x", "test_x"))
    train_y, test_y = (arrays[key].astype("int64") for key in ("train_y", "test_y"))
    rest, held = holdout(train_y, _VALIDATION, seed, stratify=True)
    full = Split(Sequences(train_x), train_y)
    training = full.take(rest)
    return Dataset(
        name="smnist",
        task=Task.CLASSIFY,
        train=training,
        validation=full.take(held),
        test=Split(Sequences(test_x), test_y),
        normalisation=Normalisation.fit(training.x.values, scaling),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _content(file: RemoteFile, progress: ProgressFactory | None) -> bytes:
    found = _find(file.name)
    if found is None:
        callback = progress(file.name) if progress is not None else None
        try:
            found = download(file, MIRRORS, cache_folder() / "mnist", progress=callback)
        except OSError as error:
            raise DataError(
                f"{file.name} cannot be stored in {cache_folder() / 'mnist'}: {error}. "
                f"Set {DATA_VARIABLE} to a folder that has mnist/{file.name}[.gz]."
            ) from error
    return read_checked(found, file)


def _find(name: str) -> Path | None:
    for folder in data_folders("mnist"):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None
