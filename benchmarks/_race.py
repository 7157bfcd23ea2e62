"""Contenders in processes of their own, compared, then timed in alternation."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from _shape import TINY, TINY_WIDE, Shape

from compressm.layers import ModelConfig, SequenceModel

TURN = 0.3  # seconds that a turn should last
MOST = 20  # runs in a turn


def has_jax() -> bool:
    """Whether the contenders in JAX can run."""
    return find_spec("jax") is not None


class Worker:
    """The main process's end of one worker."""

    def __init__(self, kind: str, threads: int) -> None:
        self.kind = kind
        command = [sys.executable, str(Path(__file__).with_name("_worker.py")), kind, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **details: Any) -> dict[str, float]:
        """The worker's answer; ends the benchmark where it has none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The worker for {self.kind!r} ended at {do!r} {details}; its message is above.")
        return json.loads(line)

    def load(self, task: str, shape: Shape, arrays: Path) -> float:
        """Seconds until the first run is done: building, compiling, running once."""
        return self.ask("load", task=task, shape=shape.to_dict(), arrays=str(arrays))["seconds"]

    def run(self, count: int) -> float:
        """Seconds of one of `count` runs."""
        return self.ask("run", count=count)["seconds"]


@contextmanager
def workers(kinds: Sequence[str], threads: int) -> Iterator[dict[str, Worker]]:
    """One worker for each kind."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(Worker(kind, threads)) for kind in kinds}


@contextmanager
def arrays_of(shape: Shape) -> Iterator[Path]:
    """A file with the weights of a fresh model, a batch, and a layer's input and gradient, the same for everyone."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(width=shape.width, order=shape.order, blocks=shape.blocks))
    weights = {f"weights/{name}": value.numpy() for name, value in model.state_dict().items()}
    inner = (shape.batch, shape.length, shape.width)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(
            path,
            **weights,
            x=torch.randn(shape.batch, shape.length, 1).numpy(),
            labels=torch.randint(10, (shape.batch,)).numpy(),
            u=torch.randn(inner).numpy(),
            grad=torch.randn(inner).numpy(),
        )
        yield path


def compare(running: Mapping[str, Worker], allowed: float = 1e-4, gradients_allowed: float = 1e-3) -> None:
    """Stop unless all workers give the first one's output and gradients.

    An error is the largest difference relative to the largest entry of the first worker's array.
    """
    with TemporaryDirectory() as folder:
        results: dict[str, dict[str, Any]] = {}
        for number, (kind, worker) in enumerate(running.items()):
            path = Path(folder) / f"{number}.npz"
            worker.ask("results", into=str(path))
            with np.load(path) as stored:
                results[kind] = {name: stored[name] for name in stored.files}
    first, *others = results
    for kind in others:
        if results[kind].keys() != results[first].keys():
            raise SystemExit(f"{kind} and {first} are not of the same model; nothing was measured.")
        for name, wanted in results[first].items():
            error = float(np.abs(results[kind][name] - wanted).max(initial=0) / np.abs(wanted).max(initial=1e-30))
            if not error <= (allowed if name in ("scores", "y") else gradients_allowed):
                raise SystemExit(f"{kind} differs from {first} by {error:.2g} in {name!r}; nothing was measured.")


def alternate(running: Mapping[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Seconds of one run, a turn each in every round; while one runs the others wait."""
    counts = {kind: max(1, min(MOST, round(TURN / worker.run(1)))) for kind, worker in running.items()}
    times: dict[str, list[float]] = {kind: [] for kind in running}
    for round_ in range(rounds + 1):
        for kind, worker in running.items():
            seconds = worker.run(counts[kind])
            if round_ > 0:  # the first round warms up
                times[kind].append(seconds)
    return times


def peak_memory(kind: str, task: str, shape: Shape, arrays: Path, threads: int) -> tuple[float, float]:
    """Growth of the resident set in MB in a fresh process: at the peak of three warm runs, and of loading as well.

    It is counted from after the imports and a run of a tiny narrow and of a tiny wide model, which load what any first
    run loads.
    """
    with Worker(kind, threads) as worker:
        for small in (TINY, TINY_WIDE):
            with arrays_of(small) as tiny:
                worker.load(task, small, tiny)
        worker.ask("baseline")
        worker.load(task, shape, arrays)
        loading = worker.ask("peak")["mb"]
        worker.ask("forget peak")
        worker.run(3)
        running = worker.ask("peak")["mb"]
    return running, max(loading, running)


def ratio(mb: float, of: float) -> float:
    """One growth of memory against another; NaN where the other is too small to be seen, as in a smoke run."""
    return mb / of if of > 0 else float("nan")


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Median and least."""
    return {"median ms": 1e3 * statistics.median(times), "least ms": 1e3 * min(times)}
