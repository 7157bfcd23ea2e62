"""A process that runs one contender, asked over its standard input, one line of JSON a question and an answer.

{"do": "load", "task": ..., "shape": ..., "arrays": file}   build the contender and run it once; {"seconds": ...}
{"do": "results", "into": file}                             save what is to be compared
{"do": "run", "count": n}                                   {"seconds": of one}
{"do": "baseline"}                                          memory is counted from here, and its peak anew
{"do": "forget peak"}                                       its peak anew
{"do": "peak"}                                              {"mb": growth of the resident set at its peak}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
from _memory import forget_peak, peak_resident_mb, resident_mb
from _shape import Shape


def main(kind: str, threads: int) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    _bind(threads)
    worker = _Worker(kind, threads)
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(**json.loads(line))) + "\n")
        answers.flush()


class _Worker:
    def __init__(self, kind: str, threads: int) -> None:
        self._kind = kind
        self._module = importlib.import_module("_jax_contender" if kind.startswith("jax ") else "_torch_contender")
        self._contender: Any = None
        self._base, self._arrays = 0.0, ""
        if not kind.startswith("jax "):
            importlib.import_module("torch").set_num_threads(threads)

    def answer(self, do: str, **details: Any) -> dict[str, float]:
        """What the question asks for."""
        match do:
            case "load":
                return self._load(**details)
            case "results":
                np.savez(details["into"], **self._contender.results(_contents(self._arrays)))
            case "run":
                start = time.perf_counter()
                self._contender.run(details["count"])
                return {"seconds": (time.perf_counter() - start) / details["count"]}
            case "baseline":
                self._contender = None
                gc.collect()
                forget_peak()
                self._base = resident_mb()
            case "forget peak":
                forget_peak()
            case "peak":
                return {"mb": peak_resident_mb() - self._base}
            case _:
                raise ValueError(f"There is no question {do!r}.")
        return {}

    def _load(self, task: str, shape: dict[str, Any], arrays: str) -> dict[str, float]:
        self._contender = None  # what the last shape held is free before the next is built
        self._arrays, contents = arrays, _contents(arrays)
        start = time.perf_counter()
        self._contender = self._module.build(self._kind, task, Shape(**shape), contents)
        del contents  # not part of the contender's memory
        self._contender.run(1)
        return {"seconds": time.perf_counter() - start}


def _contents(arrays: str) -> dict[str, Any]:
    with np.load(arrays) as stored:
        return {name: stored[name] for name in stored.files}


def _bind(threads: int) -> None:
    """Keep to the first `threads` cores, which is what XLA counts; without effect where the system cannot."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
