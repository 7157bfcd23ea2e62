"""Two runs in one folder refuse each other, and a process that was killed keeps nobody out."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressm.cli import recorder
from compressm.cli.folder import RunFolder
from compressm.cli.lock import FolderLock, Owner
from compressm.errors import ConfigError

Command = Callable[..., Any]

HOLDER = """
import sys, time
from pathlib import Path
if sys.argv[2] == "without":
    sys.modules["fcntl"] = None
from compressm.cli.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["with", "without"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with flock, once as on a platform or a file system that has none."""
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    return request.param


@pytest.fixture
def holder(locks: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", HOLDER, str(tmp_path), locks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_and_named(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"in use by the process {holder.pid} on {socket.gethostname()}"):
        FolderLock(tmp_path).__enter__()
    with pytest.raises(ConfigError, match="in use"):  # an attempt does not harm the lock
        FolderLock(tmp_path).__enter__()


def test_the_lock_of_a_killed_process_is_void(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".lock")]  # its file is still there
    with FolderLock(tmp_path):
        assert Owner.read(next(tmp_path.glob(".lock*"))) == Owner.here()
    assert not list(tmp_path.iterdir())


def test_within_one_process_too(locks: str, tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=str(os.getpid())):
        FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_locks_that_the_file_system_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with FolderLock(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock-owner"]
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_another_machines_process_is_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    owner = tmp_path / ".lock-owner"
    for content in (json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}), "", "{", "[]", '{"pid": "x", "host": 1}'):
        owner.write_text(content)
        with pytest.raises(ConfigError, match=r"delete .*\.lock-owner"):
            FolderLock(tmp_path).__enter__()
        assert owner.read_text() == content
    owner.write_text(json.dumps({"pid": 10**30, "host": socket.gethostname()}))
    with FolderLock(tmp_path):
        pass


def test_a_file_that_was_deleted_by_its_owner_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the owner leaves and a third process makes a file of its own."""
    real, files = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not files:
            (tmp_path / ".lock").unlink()
            files.append(os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT))
            real(files[0], how)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ConfigError, match="in use"):
        FolderLock(tmp_path).__enter__()
    os.close(files[0])


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be written to: No such file"):
        FolderLock(tmp_path / "nowhere").__enter__()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ConfigError, match="No space left"):
            FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


def test_two_runs_in_one_folder(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, second = tmp_path / "run", []
    stepped = recorder.Recorder.stepped

    def meanwhile(self: recorder.Recorder, now: int, loss: float) -> None:
        stepped(self, now, loss)
        if now == 15 and not second:
            second.append(command("train", "--resume", folder))

    monkeypatch.setattr(recorder.Recorder, "stepped", meanwhile)
    assert command("train", "-q", "--run", folder, *tiny).code == 0
    assert second[0].code == 2
    assert f"in use by the process {os.getpid()}" in " ".join(second[0].err.split())
    assert RunFolder(folder).checkpoints()[-1].name == "step-00000024"
    assert not list(folder.glob(".lock*"))


def test_of_two_that_make_the_same_folder_one_is_refused(
    command: Command, tiny: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "run", os.replace

    def slower(source: Path, target: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").touch()
        real(source, target)

    monkeypatch.setattr(os, "replace", slower)
    result = command("train", "--run", folder, *tiny)
    assert result.code == 2 and "exists and is not empty" in " ".join(result.err.split())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_killed_run_can_be_resumed_at_once(kill_resume: Any, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = kill_resume.spawn(*kill_resume.ARGUMENTS, "--run", str(folder))
    try:
        while process.poll() is None and not RunFolder(folder).checkpoints():
            time.sleep(0.01)
        refused = command("train", "--resume", folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert refused.code == 2 and f"in use by the process {process.pid}" in " ".join(refused.err.split())
    assert (folder / ".lock").exists()
    assert command("train", "-q", "--resume", folder).code == 0


def test_two_processes_that_start_at_once(kill_resume: Any, tmp_path: Path) -> None:
    """Whichever comes first trains to the end; the other is refused, and has changed nothing."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "compressm", *kill_resume.ARGUMENTS, "--run", str(folder), "--steps", "100"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], told
    assert "Error: The run folder" in " ".join(told[codes.index(2)].split())
    assert RunFolder(folder).checkpoints()[-1].name == "step-00000100"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
