"""Download one file from mirrors, check it, and put it in place whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressm.errors import DataError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16

Progress = Callable[[int, int | None], None]
"""Called with (bytes received, bytes announced by the server or None)."""


@dataclass(frozen=True)
class RemoteFile:
    """A gzip-compressed file on several mirrors, known by the size and SHA-256 of its decompressed bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Limits:
    """When a transfer is given up: seconds without a byte, seconds in all, bytes above the decompressed size."""

    stall: float = 30.0
    total: float = 1800.0
    slack: int = 1 << 20


def verify(content: bytes, file: RemoteFile, source: str) -> None:
    """Check size and SHA-256 of the decompressed `content`; `source` names it in messages.

    Raises:
        DataError: one of them is wrong.
    """
    if len(content) != file.size:
        raise DataError(f"{source} has {len(content)} bytes decompressed, wanted {file.size}.")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(f"{source} has the SHA-256 {found}, wanted {file.sha256}.")


def unpack(packed: bytes, file: RemoteFile, source: str) -> bytes:
    """The decompressed content of a gzip file, checked; never more than one byte above the wanted size is unpacked.

    Raises:
        DataError: the bytes are no gzip file, end early, or are not the wanted content.
    """
    engine = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = engine.decompress(packed, file.size + 1)
    except zlib.error as error:
        raise DataError(f"{source} is not a sound gzip file: {error}.") from error
    if len(content) <= file.size and not engine.eof:
        raise DataError(f"{source} ends early: {len(packed)} bytes give {len(content)} of {file.size} decompressed.")
    verify(content, file, source)
    return content


def download(
    file: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    *,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch `file.name` + ".gz" from the first mirror that gives the right bytes; return the decompressed file's path.

    The bytes go to a temporary file in `folder`, which gets its name only when size and SHA-256 are right; an
    earlier partial transfer is never continued.

    Raises:
        DataError: no mirror gave the right file; the message says what each of them did.
    """
    limits = limits or Limits()
    failures: list[str] = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}.gz"
        try:
            content = unpack(_fetch(url, file.size + limits.slack, limits, progress), file, url)
        except (DataError, urllib.error.URLError, http.client.HTTPException, OSError, EOFError) as error:
            _log.warning("%s: %s", url, error)
            failures.append(f"{url}: {error}")
            continue
        return _write(content, folder / file.name)
    tried = "\n  ".join(failures) or "(no mirror given)"
    raise DataError(
        f"{file.name} could not be downloaded:\n  {tried}\n"
        f"Put the file (plain or .gz) into {folder} yourself, or into {folder.name}/ of the folder that COMPRESSM_DATA "
        "names."
    )


def read_checked(path: Path, file: RemoteFile) -> bytes:
    """The decompressed, checked content of a local copy (`.gz` or plain).

    Raises:
        DataError: the file is damaged or another one.
    """
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as stream:
                content = stream.read(file.size + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a sound gzip file: {error}. Delete it or replace it.") from error
    else:
        with path.open("rb") as stream:
            content = stream.read(file.size + 1)
    try:
        verify(content, file, str(path))
    except DataError as error:
        raise DataError(f"{error} Delete it or replace it.") from error
    return content


def _fetch(url: str, most: int, limits: Limits, progress: Progress | None) -> bytes:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is neither http nor https.")
    deadline = time.monotonic() + limits.total
    request = urllib.request.Request(url, headers={"User-Agent": "compressm"})
    received = bytearray()
    with urllib.request.urlopen(request, timeout=limits.stall) as response:
        length = response.headers.get("Content-Length")
        announced = int(length) if length is not None and length.isdigit() else None
        if announced is not None and announced > most:
            raise DataError(f"the server announces {announced} bytes; at most {most} are expected.")
        while chunk := response.read1(_CHUNK):
            received += chunk
            if len(received) > most:
                raise DataError(f"more than {most} bytes came; the transfer was stopped.")
            if time.monotonic() > deadline:
                raise DataError(f"the transfer took more than {limits.total:g} s and was stopped.")
            if progress is not None:
                progress(len(received), announced)
    if announced is not None and len(received) < announced:
        raise DataError(f"the transfer broke off after {len(received)} of {announced} bytes.")
    return bytes(received)


def _write(content: bytes, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
