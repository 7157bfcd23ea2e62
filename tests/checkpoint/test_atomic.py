"""A save that is killed, or that the file system refuses, leaves a whole checkpoint: the old one or the new one."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressm.checkpoint import folder, load_checkpoint, read_structure, save_checkpoint
from compressm.errors import CheckpointError

CALLS = ("mkdir", "rename", "fsync", "unlink", "rmdir", "open", "close")


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


class HalfWritten:
    """A file whose writes may fail in the middle."""

    def __init__(self, stream: Any, tick: Callable[[], None]) -> None:
        self.stream, self.tick = stream, tick
        self.fileno, self.flush = stream.fileno, stream.flush

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        self.stream.write(data[: len(data) // 2])
        self.stream.flush()
        self.tick()
        self.stream.write(data[len(data) // 2 :])


class Faulty:
    """File system calls below `folder`, of which the one with number `at` and all later ones fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> None:
        self.at, self.error, self.count, self.once = at, error, 0, False
        for name in CALLS:
            monkeypatch.setattr(folder.os, name, self.guarded(getattr(os, name)))
        monkeypatch.setattr(folder, "open", self.opened, raising=False)

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at or (self.count > self.at and not self.once):
            raise self.error()

    def guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return call(*args, **kwargs)

        return wrapper

    def opened(self, path: Path, mode: str) -> Any:
        self.tick()
        return HalfWritten(builtins.open(path, mode), self.tick)


def model(value: float) -> nn.Module:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer


def stored(path: Path) -> float:
    layer = model(0.0)
    load_checkpoint(path, layer)
    assert (layer.weight == layer.weight[0, 0]).all()
    return layer.weight[0, 0].item()


def calls_of_a_save(tmp_path: Path) -> int:
    save_checkpoint(tmp_path / "count", model(1.0))
    with pytest.MonkeyPatch.context() as patch:
        faulty = Faulty(patch, 10**9, Killed)
        save_checkpoint(tmp_path / "count", model(1.0))
        return faulty.count


def kill_at(path: Path, at: int, value: float) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        Faulty(patch, at, Killed)
        try:
            save_checkpoint(path, model(value))
        except Killed:
            return True
    return False


def messages_of_a_save(path: Path, value: float) -> list[str]:
    try:
        save_checkpoint(path, model(value))
    except CheckpointError as error:
        return [str(error)]
    return []


def test_there_are_many_places_to_be_killed_at(tmp_path):
    assert calls_of_a_save(tmp_path) > 20


def test_a_kill_at_any_call_while_replacing_leaves_the_old_or_the_new(tmp_path):
    path, seen = tmp_path / "c", set()
    total = calls_of_a_save(tmp_path)
    for at in range(1, total + 1):
        save_checkpoint(path, model(1.0))
        assert kill_at(path, at, 2.0)
        seen.add(stored(path))
        read_structure(path)
        save_checkpoint(path, model(3.0))  # goes on as ever, and leaves nothing behind
        assert stored(path) == 3.0
        assert {p.name for p in tmp_path.iterdir()} == {"c", "count"}
    assert seen == {1.0, 2.0}
    assert not kill_at(path, total + 1, 2.0)


def test_kills_one_after_another(tmp_path):
    path = tmp_path / "c"
    total = calls_of_a_save(tmp_path)
    save_checkpoint(path, model(1.0))
    for at in range(1, total + 1):
        for also in (at, total - at + 1):
            kill_at(path, also, 2.0)
            assert stored(path) in (1.0, 2.0)


def test_a_kill_during_the_first_save_leaves_none_or_the_new(tmp_path):
    total = calls_of_a_save(tmp_path)
    for at in range(1, total + 1):
        path = tmp_path / f"first-{at}"
        kill_at(path, at, 2.0)
        if path.exists():
            assert stored(path) == 2.0
        save_checkpoint(path, model(3.0))
        assert stored(path) == 3.0


@pytest.mark.parametrize(("code", "once"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EROFS, False)])
def test_a_refusing_file_system(tmp_path, code, once):
    path, seen, failed = tmp_path / "c", set(), 0
    total = calls_of_a_save(tmp_path)
    for at in range(1, total + 1):
        save_checkpoint(path, model(1.0))
        with pytest.MonkeyPatch.context() as patch:
            faulty = Faulty(patch, at, lambda: OSError(code, os.strerror(code)))
            faulty.once = once
            messages = messages_of_a_save(path, 2.0)
        failed += len(messages)
        assert all(os.strerror(code) in message for message in messages)
        assert messages or stored(path) == 2.0  # making a folder that is there, or cleaning up, may fail silently
        seen.add(stored(path))
        assert not once or {p.name for p in tmp_path.iterdir()} <= {"c", "count", ".c.previous"}
    assert seen == {1.0, 2.0}
    assert failed > total / 2


def test_the_model_is_as_before_when_saving_fails(tmp_path, cut_run, equal, monkeypatch):
    before = cut_run.fingerprint()
    Faulty(monkeypatch, 5, lambda: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointError, match="Free space"):
        cut_run.save(tmp_path / "c")
    assert equal(cut_run.fingerprint(), before)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        save_checkpoint(tmp_path / "work", model(1.0))
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save_checkpoint(tmp_path / "file", model(1.0))
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "below", model(1.0))
