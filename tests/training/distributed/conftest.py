"""Real processes: forked from a server that has imported torch once, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressm.training.distributed.channel import unpack

HERE = Path(__file__).parent
SOURCE = str(Path(__file__).parents[3] / "src")

Launch = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """A server whose children start with torch and the library imported."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "compressm", "compressm.training.distributed.shards"])
    return context


@pytest.fixture(scope="session")
def launch(forkserver: Any, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Run a function of `file` as `size` ranks; what each returned, by rank, and None for one that was killed.

    An exception is returned as {"error": its kind, "text": its message}.
    """

    def call(name: str, size: int, *, timeout: float = 500.0, file: str = "workers.py", **arguments: Any) -> list[Any]:
        folder = tmp_path_factory.mktemp("job")
        jobs = [
            {"function": name, "rank": rank, "size": size, "folder": str(folder), "arguments": arguments}
            for rank in range(size)
        ]
        processes = [forkserver.Process(target=runpy.run_path, args=(str(HERE / file), {"JOB": job})) for job in jobs]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        stuck = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        assert not stuck, f"ranks {stuck} did not end within {timeout} s"
        files = [folder / f"result-{rank}" for rank in range(size)]
        return [
            unpack(torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.uint8)) if f.exists() else None
            for f in files
        ]

    return call


@pytest.fixture
def assert_same() -> Callable[[list[dict[str, Any]]], None]:
    """Asserts that events, models and optimizer states of all ranks are equal, bit for bit."""

    def compare(results: list[dict[str, Any]]) -> None:
        for other in results[1:]:
            assert other["events"] == results[0]["events"]
            for part in ("model", "optimizer"):
                assert other[part].keys() == results[0][part].keys()
                assert [k for k, v in results[0][part].items() if not torch.equal(v, other[part][k])] == []

    return compare
