"""Where data files are looked for and kept, and how they are read."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressm.errors import DataError

DATA_VARIABLE = "COMPRESSM_DATA"


def cache_folder() -> Path:
    """The folder for downloads: `$XDG_CACHE_HOME/compressm`, else `~/.cache/compressm`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compressm"


def data_folders(name: str) -> list[Path]:
    """The folders searched for the files of data set `name`, in order: `$COMPRESSM_DATA/name`, then the cache."""
    base = os.environ.get(DATA_VARIABLE)
    return ([Path(base) / name] if base else []) + [cache_folder() / name]


def find_file(candidates: list[tuple[str, str]], name: str, remedy: str) -> Path:
    """The first file or folder of `candidates`, pairs (data set's folder, path in it), that lies in a data folder.

    Raises DataError, saying where the data set `name` was looked for and `remedy`, where there is none.
    """
    looked: list[str] = []
    for folder, path in candidates:
        for base in data_folders(folder):
            if (base / path).exists():
                return base / path
            looked.append(str(base / path))
    where = f"${DATA_VARIABLE}" if os.environ.get(DATA_VARIABLE) else f"${DATA_VARIABLE} (not set)"
    raise DataError(
        f"The data set {name!r} was not found in {where} nor in the cache; looked for\n  "
        + "\n  ".join(looked)
        + f"\n{remedy}"
    )


def read_arrays(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """The arrays `keys` of a `.npz` file; nothing is unpickled. Raises DataError where one cannot be had."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = sorted(set(keys) - set(archive.files))
            if missing:
                raise DataError(f"{path} has no array {', '.join(missing)}; found {', '.join(archive.files)}.")
            return {key: archive[key] for key in keys}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}. Replace the file.") from error
