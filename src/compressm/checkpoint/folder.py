"""A folder of files that appears whole or not at all, and reading it with suspicion.

The new folder is written beside its final place, brought to the disk, and renamed. Where it replaces an old one, that
one is renamed away first; a kill between the two renames leaves it under its second name, where `locate` finds it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from compressm.checkpoint.document import FILES, MAX_STRUCTURE_BYTES, STRUCTURE, FileInfo
from compressm.checks import brief
from compressm.errors import CheckpointError

_logger = logging.getLogger(__name__)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` as the folder `path`, in place of an earlier checkpoint there.

    Raises CheckpointError where the file system refuses, or `path` holds anything but a checkpoint; an earlier
    checkpoint is then as it was.
    """
    path = Path(os.path.realpath(path))
    partial, previous = _beside(path, "partial"), _beside(path, "previous")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(previous, path)
        _require_ours(path)
        _remove(partial)
        _write(partial, files)
        if path.exists():
            _remove(previous)
            os.rename(path, previous)
        os.rename(partial, path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            _put_back(previous, path)
            _remove(partial)
        raise CheckpointError(
            f"{path} could not be written: {error.strerror or error}. Free space or choose another place; an earlier "
            f"checkpoint there is still valid."
        ) from error
    try:
        _remove(previous)
    except OSError as error:
        _logger.warning("%s could not be removed (%s); the next save tries again.", previous, error.strerror or error)


def as_path(path: object) -> Path:
    """`path` as a Path; CheckpointError where it is none."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise CheckpointError(f"The checkpoint's place is {brief(path)}; wanted the path of a folder.")
    return Path(path)


def locate(path: Path) -> Path:
    """Where the checkpoint is: `path`, or beside it where a save was killed between its two renames."""
    path = Path(os.path.realpath(path))
    previous = _beside(path, "previous")
    if not path.exists() and previous.exists():
        return previous
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint: {'a file' if path.exists() else 'no such folder'}.")
    return path


def read_structure_file(folder: Path) -> bytes:
    """The content of `structure.json`."""
    path = folder / STRUCTURE
    size = _size(path)
    if size > MAX_STRUCTURE_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; wanted at most {MAX_STRUCTURE_BYTES}. Use another checkpoint.")
    return _read(path, size)


def read_file(folder: Path, name: str, info: FileInfo) -> bytes:
    """The content of a file; raises CheckpointError unless it has the declared size and checksum."""
    path = folder / name
    size = _size(path)
    if size != info.size:
        raise CheckpointError(
            f"{path} has {size} bytes; wanted {info.size}. It is truncated or foreign; use another checkpoint."
        )
    data = _read(path, size)
    if FileInfo.of(data) != info:
        raise CheckpointError(f"{path} was altered or damaged: its checksum does not fit. Use another checkpoint.")
    return data


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _put_back(previous: Path, path: Path) -> None:
    if previous.exists() and not path.exists():
        os.rename(previous, path)


def _require_ours(path: Path) -> None:
    if not path.exists():
        return
    foreign = sorted(p.name for p in path.iterdir() if p.name not in FILES) if path.is_dir() else [path.name]
    if foreign:
        raise CheckpointError(
            f"{path} is not a checkpoint and would be replaced: it holds {', '.join(foreign[:5])}. Choose another path."
        )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    os.mkdir(folder)
    for name, data in files.items():
        with open(folder / name, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    _sync(folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        for entry in sorted(folder.iterdir()):
            os.unlink(entry)
        os.rmdir(folder)


def _sync(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        status = os.stat(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. The checkpoint is incomplete; use another."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not an ordinary file. Use another checkpoint.")
    return status.st_size


def _read(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Use another checkpoint.") from error
