"""Running the command line inside the test process."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from compressm.cli.app import run

TINY = [
    "--blocks", "1", "--width", "8", "--order", "16", "--batch-size", "16", "--steps", "24", "--threads", "1",
    "--at", "6,12", "--eval-every", "10", "--checkpoint-every", "10", "--set", "training.log_every=4",
    "--set", "output.tensorboard=false", "--set", "output.pictures=false",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `compressm` with these arguments."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Arguments of a run of a second."""
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run on `digits`, for tests that only read it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    if run(["train", "digits", "--quiet", "--run", str(folder), *TINY, "--set", "output.pictures=true"]) != 0:
        pytest.fail("the tiny run failed")
    return folder


@pytest.fixture(scope="session")
def kill_resume():
    """The experiment's functions."""
    path = Path(__file__).parents[2] / "experiments" / "kill_resume.py"
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module
    spec.loader.exec_module(module)
    source = str(Path(__file__).parents[2] / "src")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return module
