"""The forms of the library's recurrence, shape by shape, beside an associative scan, and what the cost model chooses.

    python benchmarks/scan_forms.py            # narrow to wide layers, short to long sequences
    python benchmarks/scan_forms.py --smoke    # tiny shapes, a few seconds

One layer, forward and backward. The forms take turns, so that a busy machine slows all of them, and are compared with
each other before they are timed. "chosen / best" is 1 where the cost model chose the fastest form.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _race import arrays_of
from _report import RESULTS, table, write
from _shape import TINY, Shape
from _torch_contender import Layer

from compressm.ops import Form, choose_form, keep_freed_memory

FORMS = [form for form in Form if form is not Form.REFERENCE]
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
ALLOWED = 1e-3  # relative to the largest entry, of outputs and gradients


def measure(shape: Shape, repeats: int) -> dict[str, object]:
    """Median times of all forms and of the scan."""
    names = {f"library:{form.value}": f"{form.value} ms" for form in FORMS} | {"torch scan": "scan ms"}
    with arrays_of(shape) as path, np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    layers = {column: Layer(kind, shape, arrays) for kind, column in names.items()}
    check_agreement(layers, shape)
    times: dict[str, list[float]] = {column: [] for column in layers}
    for round_ in range(repeats + 1):
        for column, layer in layers.items():
            start = time.perf_counter()
            layer.run(1)
            if round_ > 0:  # the first round warms up
                times[column].append(1e3 * (time.perf_counter() - start))
    medians = {column: statistics.median(values) for column, values in times.items()}
    chosen = choose_form(shape.batch, shape.length, shape.width, shape.width, shape.order, training=True)
    best = min(medians[f"{form.value} ms"] for form in FORMS)
    return {
        "batch": shape.batch,
        "L": shape.length,
        "H": shape.width,
        "N": shape.order,
        **medians,
        "chosen": chosen.value,
        "chosen / best": medians[f"{chosen.value} ms"] / best,
    }


def check_agreement(layers: dict[str, Layer], shape: Shape) -> None:
    """Stop unless all compute the same function."""
    results = [layer.results() for layer in layers.values()]
    for column, found in zip(layers, results, strict=True):
        for name, wanted in results[0].items():
            error = float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
            if not error <= ALLOWED:
                raise SystemExit(f"{shape}: {column[:-3]} differs by {error:.2g} in {name}; nothing was measured.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results are printed, not kept")
    parser.add_argument("--threads", type=int, help="number of threads (torch's default otherwise)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    shapes, repeats = (SMOKE_SHAPES, 1) if options.smoke else (SHAPES, 5)
    measured = {"Forward and backward of one layer": [measure(shape, repeats) for shape in shapes]}
    for heading, rows in measured.items():
        print(f"{heading}\n{table(rows)}\n")
    with tempfile.TemporaryDirectory() as scratch:
        name = f"scan_forms_threads_{torch.get_num_threads()}"
        path = write(name, "Recurrences", measured, Path(scratch) if options.smoke else RESULTS)
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
