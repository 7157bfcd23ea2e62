"""Fit the shipped table of costs (src/compressm/ops/cost.py) to times measured here; prints it, changes nothing.

    python benchmarks/fit_costs.py            # some minutes on an idle machine
    python benchmarks/fit_costs.py --smoke

Every form runs on a range of shapes, with and without kernels and gradients, on one thread and on all. The unit costs
that minimize the squared logarithm of estimated / measured are the fit.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from scipy.optimize import minimize, nnls

from compressm.ops import Machine, Shape, keep_freed_memory, use_kernels
from compressm.ops.cost import _START, _WORK
from compressm.ops.measure import measure_forms

SIZES = [
    (50, 784, 8, 256),
    (50, 784, 8, 100),
    (50, 784, 8, 47),
    (50, 784, 8, 13),
    (16, 1024, 8, 64),
    (4, 784, 8, 64),
    (4, 784, 8, 256),
    (1, 4096, 8, 64),
    (1, 16384, 4, 32),
    (16, 256, 16, 64),
    (16, 256, 32, 64),
    (16, 256, 64, 64),
    (32, 256, 64, 16),
    (64, 128, 32, 32),
    (32, 512, 16, 32),
    (2, 1024, 64, 64),
    (128, 200, 16, 16),
    (4, 2048, 16, 128),
    (32, 300, 4, 8),
    (8, 512, 128, 256),
]
SMOKE_SIZES = [(2, 20, 2, 3), (17, 30, 3, 4), (3, 40, 4, 2), (5, 25, 2, 6)]

Rows = dict[str, list[tuple[dict[str, float], float]]]


def collect(sizes: list[tuple[int, int, int, int]], seconds: float) -> tuple[Rows, Rows]:
    """Units of work and nanoseconds by row of the table: without gradients, and with."""
    found: tuple[Rows, Rows] = ({}, {})
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for kernels in (True, False):
            before = use_kernels(kernels)
            for training in (False, True):
                for batch, length, width, order in sizes:
                    shape, machine = Shape(batch, length, width, width, order, training), Machine.here()
                    for one in measure_forms(shape, seconds=seconds):
                        kind, work = _WORK[one.form](shape, machine) or ("", {})
                        row = {_START: 1.0, **work}, 1e9 * one.measured
                        found[training].setdefault(kind, []).append(row)
            use_kernels(before)
    return found


def fit(rows: list[tuple[dict[str, float], float]]) -> tuple[dict[str, float], float]:
    """Unit costs in nanoseconds, and the root mean square of log(estimated / measured)."""
    names = list(rows[0][0])
    work, measured = np.array([[units[n] for n in names] for units, _ in rows]), np.array([t for _, t in rows])
    scaled = work / measured[:, None]
    size = scaled.max(0)
    start, _ = nnls(scaled / size, np.ones(len(rows)))

    def misfit(logs: np.ndarray) -> float:
        return float(np.mean(np.log(work @ np.exp(logs) / measured) ** 2))

    best = minimize(misfit, np.log(np.maximum(start, 1e-6) / size), method="Nelder-Mead", options={"maxfev": 8000})
    return dict(zip(names, np.exp(best.x), strict=True)), math.sqrt(best.fun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes")
    options = parser.parse_args()
    keep_freed_memory()
    found = collect(SMOKE_SIZES if options.smoke else SIZES, 0.0 if options.smoke else 0.15)
    for training in (False, True):
        print("with a backward pass" if training else "forward")
        for kind, rows in found[training].items():
            costs, error = fit(rows)
            print(f"  {kind}: " + ", ".join(f"{n} {v:.3g}" for n, v in costs.items()) + f"  (misfit {error:.2f})")


if __name__ == "__main__":
    main()
