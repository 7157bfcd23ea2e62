"""Whole training steps of the library, of the same model in JAX, and of a good scan in plain torch.

    python benchmarks/training_step.py                      # sequential MNIST at three orders, and two wide models
    python benchmarks/training_step.py --without-jax
    python benchmarks/training_step.py --smoke              # tiny, a few seconds

A step is zero_grad, forward, cross entropy, backward and (fused) Adam. The library runs with the kernels of
compressm[fast], where numba is installed, and without them; the scan in torch is torch alone. In JAX the recurrence is
lax.associative_scan, a loop (lax.scan) or an FFT convolution, for which the wide shapes have no memory; a step is one
jitted call with donated state, and a turn waits for the host once.

Every contender has a process of its own, which lives through all shapes; a turn of steps here is followed by one there
while all others wait, and the figures are medians over the turns. All start from the same weights, and nothing is timed
unless scores and gradients agree. "first run" is building the model, compiling where there is something to compile, and
one step; it is not in the medians.

The share of the machine's peak compares the step's matrix products, 3 batch L blocks (8 H N + 4 H^2) operations, with a
product of two 2048 x 2048 matrices in torch, timed in the same alternation; convolutions do fewer operations, so that
their share means nothing. Peak memory is the growth of the resident set in a fresh process, over three warm steps, and
including the first run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _race import Worker, alternate, arrays_of, compare, has_jax, milliseconds, peak_memory, ratio, workers
from _report import RESULTS, table, write
from _shape import SHAPES, TINY, Shape
from _torch_contender import LIBRARY, SCAN, SGEMM, SGEMM_SIZE, WITHOUT_NUMBA

from compressm.ops import kernels_run

IN_TORCH = [LIBRARY, *([WITHOUT_NUMBA] if kernels_run() else []), SCAN]
IN_JAX = ["jax scan", "jax loop", "jax convolution"]
SGEMM_FLOPS = 2 * SGEMM_SIZE**3
LARGEST_KERNEL = 1e9  # bytes of all blocks' H x H kernels, of which training holds several copies


def measure(
    shape: Shape, running: dict[str, Worker], rounds: int, threads: int, memory_of: Sequence[str]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """A row for each contender, with its memory where it is in `memory_of`, and one on the machine's peak."""
    racing = {kind: worker for kind, worker in running.items() if _fits(kind, shape)}
    with arrays_of(shape) as arrays:
        first = {kind: worker.load("step", shape, arrays) for kind, worker in racing.items()}
        compare({k: w for k, w in racing.items() if k != SGEMM})
        times = alternate(racing, rounds)
        memory = {k: peak_memory(k, "step", shape, arrays, threads) for k in racing if k in memory_of}
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    peak = SGEMM_FLOPS / medians[SGEMM]
    rows: list[dict[str, object]] = [
        {
            "contender": kind,
            **milliseconds(times[kind]),
            "times library": medians[kind] / medians[LIBRARY],
            "share of sgemm peak": shape.step_flops / medians[kind] / peak,
            **_memory_cells(memory.get(kind), memory[LIBRARY][0]),
            "first run s": first[kind],
        }
        for kind in racing
        if kind != SGEMM
    ]
    machine: dict[str, object] = {
        "shape": shape.name,
        "sgemm ms": 1e3 * medians[SGEMM],
        "sgemm GFLOP/s": peak / 1e9,
        "step GFLOP": shape.step_flops / 1e9,
        "step at peak ms": 1e3 * shape.step_flops / peak,
        "library's share": shape.step_flops / medians[LIBRARY] / peak,
    }
    return rows, machine


def _memory_cells(peaks: tuple[float, float] | None, librarys: float) -> dict[str, object]:
    running, loading = peaks or ("", "")
    against = ratio(peaks[0], librarys) if peaks else ""
    return {"peak MB": running, "with first run MB": loading, "MB / library's": against}


def _fits(kind: str, shape: Shape) -> bool:
    kernels = 4.0 * 2 * shape.length * shape.width**2 * shape.blocks
    return kind != "jax convolution" or kernels <= LARGEST_KERNEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--without-jax", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape; results are printed, not kept")
    options = parser.parse_args()
    shapes, rounds = [SHAPES[name] for name in options.shapes], options.rounds
    if options.smoke:
        shapes, rounds = [TINY], 1
    with_jax = has_jax() and not options.without_jax
    if not with_jax:
        print("The rows of JAX are left out" + ("." if has_jax() else ": it is not installed (compressm[bench])."))
    kinds = [*IN_TORCH, *(IN_JAX if with_jax else [])]
    name = f"training_step_threads_{options.threads}"
    measured: dict[str, list[dict[str, object]]] = {}
    machines: list[dict[str, object]] = []
    with TemporaryDirectory() as scratch, workers([*kinds, SGEMM], options.threads) as running:
        for shape in shapes:
            memory_of = [LIBRARY] if options.smoke else kinds
            measured[str(shape)], machine = measure(shape, running, rounds, options.threads, memory_of)
            machines.append(machine)
            print(f"{shape}\n{table(measured[str(shape)])}\n{table([machine])}\n", flush=True)
            folder = Path(scratch) if options.smoke else RESULTS
            tables = {**measured, "The machine": machines}  # written after each shape: a run may be ended early
            write(name, "The training step", tables, folder, threads=options.threads)
    print(f"written: {name}.md")


if __name__ == "__main__":
    main()
