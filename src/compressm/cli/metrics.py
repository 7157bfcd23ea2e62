"""`metrics.jsonl`: one JSON object a line, appended, and cut back to a known length when a run is resumed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressm.errors import CheckpointError

Record = dict[str, Any]

_CLOCK = frozenset({"seconds", "seconds_per_step", "time"})


class MetricsFile:
    """Appends records to a file. `sync` returns its length, at which a later run may cut it off and go on."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open `path` and cut it off at `length` bytes.

        Raises:
            CheckpointError: the file is shorter than `length`, or the file system refuses, then and later.
        """
        self._path = path
        with self._told():
            path.touch()
            found = path.stat().st_size
        if found < length:
            raise CheckpointError(
                f"{path} has {found} bytes, but the checkpoint was written when it had {length}: it was altered. "
                f"Restore it, or start a new run with --config {path.with_name('config.yaml')}."
            )
        with self._told():
            os.truncate(path, length)
            self._stream = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, object]) -> None:
        """Write one record; numbers that are not finite become null."""
        with self._told():
            self._stream.write(json.dumps(_plain(record), allow_nan=False) + "\n")

    def sync(self) -> int:
        """Bring everything to the disk; the file's length in bytes."""
        with self._told():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        with self._told():
            self._stream.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._path} could not be written: {error.strerror or error}. Free space, then go on with the run "
                f"(--resume): its checkpoints are sound."
            ) from error


def read_metrics(path: Path) -> list[Record]:
    """All whole records of a metrics file; a last line that was cut off is left out.

    Raises:
        CheckpointError: a line is no record.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is incomplete or empty
    return [_record(line, number, path) for number, line in enumerate(lines, 1)]


def _record(line: bytes, number: int, path: Path) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
        raise CheckpointError(
            f"{path}, line {number}, is no record of a run: the file was altered. Restore it; the model is in the "
            f"checkpoints all the same (compressm eval {path.parent})."
        )
    return record


def without_clock(value: Any) -> Any:
    """A record without its wall-clock fields: what two equal runs have in common."""
    if isinstance(value, Mapping):
        return {key: without_clock(item) for key, item in value.items() if key not in _CLOCK}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
