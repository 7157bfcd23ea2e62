"""A full disk, files that may not grow, and a folder that is read-only: on a file system of its own, made for that."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compressm.checkpoint import read_structure
from compressm.cli.folder import RunFolder
from compressm.cli.metrics import MetricsFile, read_metrics, without_clock
from compressm.cli.responses import load_pairs
from compressm.errors import CheckpointError

Command = Callable[..., Any]

# In a mount namespace of its own, which ends with the process: run, with the file system as each step wants it.
INSIDE = """
import contextlib, io, json, shutil, subprocess, sys
from compressm.cli.app import run
place, kept, steps = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def mount(options, kind=()):
    subprocess.run(["mount", *kind, "-o", options, "none", place], check=True)
mount(steps[0][0], ("-t", "tmpfs"))
results = []
for options, arguments in steps:
    mount("remount," + options)
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    saved = subprocess.run(["ls", f"{place}/run/checkpoints"], capture_output=True, text=True).stdout.split()
    results.append([code, " ".join(err.getvalue().split()), saved])
shutil.copytree(f"{place}/run", kept)
print(json.dumps(results))
"""


def may_mount() -> bool:
    """Whether this process may make a file system in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-mr", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def weights(folder: Path) -> bytes:
    return (RunFolder(folder).checkpoints()[-1] / "model.safetensors").read_bytes()


@pytest.mark.skipif(not may_mount(), reason="needs user and mount namespaces (unshare -mr)")
def test_full_then_read_only(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    train = ["train", "digits", "-q", "--run", f"{place}/run", *tiny]
    resume = ["train", "-q", "--resume", f"{place}/run"]
    steps = [
        ["size=4k,rw", train],  # no room for a folder
        ["size=40k,rw", train],  # none for the first checkpoint
        ["size=128k,rw", resume],  # for one checkpoint, not two
        ["size=20m,rw", resume],
        ["size=20m,ro", resume],
        ["size=20m,ro", [*train[:4], f"{place}/other", *tiny]],
        ["size=20m,ro", ["eval", f"{place}/run"]],
    ]
    command = ["unshare", "-mr", sys.executable, "-c", INSIDE, str(place), str(kept), json.dumps(steps)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [code for code, _, _ in results] == [2, 2, 2, 0, 2, 2, 0], results
    assert all("No space left on device. Free space" in err for _, err, _ in results[:3])
    assert all("Read-only file system" in err and "Traceback" not in err for _, err, _ in results[4:6])
    assert [bool(saved) for _, _, saved in results[:3]] == [False, False, True]
    assert weights(kept) == weights(finished)  # as if nothing had happened
    logs = [without_clock(read_metrics(folder / "metrics.jsonl")) for folder in (kept, finished)]
    assert logs[0] == logs[1]


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond a size inside, pytest's own neither."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_may_not_grow(command: Command, tiny: list[str], finished: Path, tmp_path: Path) -> None:
    """The kernel cuts a write off in the middle."""
    folder = tmp_path / "run"
    with small_files(max(path.stat().st_size for path in finished.glob("checkpoints/*/*")) - 1):
        result = command("train", "-q", "--run", folder, *tiny)
    assert result.code == 2 and "File too large" in result.err and "Traceback" not in result.err
    for path in RunFolder(folder).checkpoints():
        read_structure(path)
    assert command("train", "-q", "--resume", folder).code == 0


class TestMetricsFile:
    def test_writing(self, tmp_path: Path) -> None:
        path, told = tmp_path / "metrics.jsonl", []
        file = MetricsFile(path)
        file.append({"kind": "start", "step": 1})
        with small_files(file.sync()):
            file.append({"kind": "start", "step": 2})
            for call in (file.sync, file.close):
                with pytest.raises(CheckpointError) as error:
                    call()
                told.append(str(error.value))
        assert all("metrics.jsonl could not be written: File too large. Free" in text for text in told)
        assert [r["step"] for r in read_metrics(path)] == [1]

    def test_opening(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="could not be written: No such file"):
            MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")


def test_damaged_impulse_responses(finished: Path, tmp_path: Path) -> None:
    """Cut short, altered or foreign, at many places: the file is named, and nothing but a known error is raised."""
    whole = sorted((finished / "responses").iterdir())[0].read_bytes()
    path, refused = tmp_path / "step-00000006.npz", 0
    damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 40))]
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    for data in [*damaged, b"[1, 2]", b"\x80\x02}q\x00."]:
        path.write_bytes(data)
        try:
            load_pairs(path)
        except CheckpointError as error:
            refused += path.name in str(error)
    assert refused > len(damaged) / 2
