"""Where data files are looked for and kept."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "COMPRESSM_DATA"


def cache_folder() -> Path:
    """The folder for downloads: `$XDG_CACHE_HOME/compressm`, else `~/.cache/compressm`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compressm"


def data_folders(name: str) -> list[Path]:
    """The folders searched for the files of data set `name`, in order: `$COMPRESSM_DATA/name`, then the cache."""
    base = os.environ.get(DATA_VARIABLE)
    return ([Path(base) / name] if base else []) + [cache_folder() / name]
