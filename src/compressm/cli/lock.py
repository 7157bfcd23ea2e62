"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from compressm.errors import ConfigError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # some network file systems


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    pid: int
    host: str

    @classmethod
    def here(cls) -> Owner:
        """The present process."""
        return cls(os.getpid(), socket.gethostname())

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The one that wrote the file; None where it was killed while writing."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(found["pid"]), str(found["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def is_gone(self) -> bool:
        """Whether it certainly no longer runs: told only for this machine, and where a process can be asked for."""
        if os.name != "posix" or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False


class FolderLock:
    """Held inside a `with` block, by one process at a time; it names its owner in the file `.lock` of the folder.

    The operating system takes the lock back however the process ends, also by SIGKILL (flock; on Windows a file that
    is deleted when it is closed). Where the file system knows no locks the file, then `.lock-owner`, is itself the
    lock: one left behind by a process of this machine that is gone is taken over.

    Raises:
        ConfigError: another process has the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        """The lock of `folder`."""
        self._folder, self._path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        """Take the lock, or raise."""
        try:
            self._descriptor = self._take()
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(vars(Owner.here())).encode())
        except OSError as error:
            self._leave()
            raise ConfigError(
                f"The run folder {self._folder} cannot be written to: {error.strerror or error}. Free space, or make "
                f"the folder writable."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self._leave()

    def _leave(self) -> None:
        if self._descriptor is None:
            return
        with suppress(OSError):
            self._path.unlink()  # before it is given back, so that nobody else's file is deleted
        os.close(self._descriptor)
        self._descriptor = None

    def _take(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                taken = _flock(descriptor)
                if taken and self._is_still(descriptor):
                    return descriptor
                if taken is False:
                    raise self._refusal(Owner.read(self._path))
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if taken is None:
                return self._take_by_creating()

    def _is_still(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _take_by_creating(self) -> int:
        self._path.unlink(missing_ok=True)
        self._path = self._folder / ".lock-owner"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_TEMPORARY", 0)
        for _ in range(2):
            try:
                return os.open(self._path, flags, 0o644)
            except FileExistsError:
                owner = Owner.read(self._path)
                if owner is None or not owner.is_gone:
                    raise self._refusal(owner) from None
                self._path.unlink(missing_ok=True)
        raise self._refusal(Owner.read(self._path))

    def _refusal(self, owner: Owner | None) -> ConfigError:
        who = "another process" if owner is None else f"the process {owner.pid} on {owner.host}"
        return ConfigError(
            f"The run folder {self._folder} is in use by {who}. Wait until it ends, or choose another folder. Where "
            f"that process is gone for certain, delete {self._path}."
        )


def _flock(descriptor: int) -> bool | None:
    """Whether this process has the lock on an open file now; None where there are no such locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
