"""The forms of the library's recurrence, shape by shape, beside an associative scan, and what the cost model chooses.

    python benchmarks/scan_forms.py            # narrow to wide layers, short to long sequences
    python benchmarks/scan_forms.py --smoke    # tiny shapes, a few seconds

One layer, forward and backward. Every form has a process of its own; they are compared with each other, then take
turns, so that a busy machine slows all of them. "chosen / best" is 1 where the cost model chose the fastest form.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _race import Worker, alternate, arrays_of, compare, workers
from _report import RESULTS, table, write
from _shape import TINY, Shape
from _torch_contender import LIBRARY, SCAN, forms

from compressm.ops import Machine, choose_form, kernels_run

# batch, length, width, order
SIZES = [
    (50, 784, 8, 256),
    (50, 784, 8, 28),
    (4, 784, 8, 256),
    (1, 4096, 8, 64),
    (16, 256, 16, 64),
    (16, 256, 32, 64),
    (16, 256, 64, 64),
    (16, 512, 128, 64),
    (8, 512, 256, 192),
]
SHAPES = [Shape(f"batch {b}, L {n}, H {h}, N {k}", b, n, h, k) for b, n, h, k in SIZES]
SMOKE_SHAPES = [TINY, Shape("one wide sequence", 1, 20, 40, 4)]


def measure(shape: Shape, running: Mapping[str, Worker], rounds: int, threads: int) -> dict[str, object]:
    """Median times of all forms and of the scan."""
    with arrays_of(shape) as arrays:
        for worker in running.values():
            worker.load("layer", shape, arrays)
        compare(running)
    medians = {kind: 1e3 * statistics.median(times) for kind, times in alternate(running, rounds).items()}
    machine = Machine(threads, kernels_run())
    sizes = shape.batch, shape.length, shape.width, shape.width, shape.order
    chosen = f"{LIBRARY}:{choose_form(*sizes, training=True, machine=machine).value}"
    best = min(time for kind, time in medians.items() if kind != SCAN)
    return {
        "batch": shape.batch,
        "L": shape.length,
        "H": shape.width,
        "N": shape.order,
        **{f"{kind.removeprefix(f'{LIBRARY}:')} ms": time for kind, time in medians.items()},
        "chosen": chosen.removeprefix(f"{LIBRARY}:"),
        "chosen / best": medians[chosen] / best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results are printed, not kept")
    options = parser.parse_args()
    shapes, rounds = (SMOKE_SHAPES, 1) if options.smoke else (SHAPES, options.rounds)
    with workers([*forms(), SCAN], options.threads) as running:
        rows = [measure(shape, running, rounds, options.threads) for shape in shapes]
    print(table(rows))
    name = f"scan_forms_threads_{options.threads}"
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.smoke else RESULTS
        write(name, "Recurrences", {"Forward and backward of one layer": rows}, folder, threads=options.threads)
    print(f"written: {name}.md")


if __name__ == "__main__":
    main()
