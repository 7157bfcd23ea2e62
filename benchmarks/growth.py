"""How time grows with the length L and with the order N: one layer, and whole training steps, in every form.

    python benchmarks/growth.py                   # L = 256 ... 65,536 and N = 1 ... 512; half an hour
    python benchmarks/growth.py --without-jax
    python benchmarks/growth.py --smoke           # tiny, a few seconds

A layer is timed forward and backward, a step is what `training_step.py` times, with one block. "library" is what a user
gets: the form that the cost model chooses. Every contender has a process of its own; at each size they are compared
with each other, then take turns. Against L the batch is 4, H 8 and N 64; against N the batch is 50, L 784 and H 8.

The exponents are slopes of straight lines through the logarithms, over the upper half of the sizes. Where time falls
with N no more, what remains does not depend on N: pointwise work, transforms and calls. "flat up to N" is the largest
N that takes at most a quarter longer than the median over the smaller ones.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _race import Worker, alternate, arrays_of, compare, has_jax, workers
from _report import RESULTS, table, write
from _shape import Shape
from _torch_contender import LIBRARY, SCAN, WITHOUT_NUMBA, forms

from compressm.ops import kernels_run

IN_TORCH = [LIBRARY, *([WITHOUT_NUMBA] if kernels_run() else []), *forms(), SCAN]
IN_JAX = ["jax scan", "jax loop", "jax convolution"]
TASKS = {"layer": "One layer, forward and backward", "step": "The whole training step"}
FLAT = 1.25
GRADIENTS_ALLOWED = 5e-3  # sums over 262,144 steps in float32


@dataclass(frozen=True)
class Sweep:
    """Sizes along one axis."""

    axis: str  # "L" or "N"
    field: str
    base: Shape
    values: tuple[int, ...]

    def shapes(self) -> list[Shape]:
        """The base at all sizes."""
        return [replace(self.base, name=f"{self.axis} {value}", **{self.field: value}) for value in self.values]


SWEEPS = [
    Sweep("L", "length", Shape("against L", 4, 256, 8, 64), tuple(2**k for k in range(8, 17))),
    Sweep("N", "order", Shape("against N", 50, 784, 8, 1), tuple(2**k for k in range(10))),
]
SMOKE_SWEEPS = [
    Sweep("L", "length", Shape("against L", 2, 16, 4, 6), (16, 32)),
    Sweep("N", "order", Shape("against N", 2, 24, 4, 1), (1, 8)),
]
Curves = dict[str, list[float]]  # milliseconds of each contender at a sweep's sizes


def measure(sweep: Sweep, task: str, running: Mapping[str, Worker], rounds: int) -> Curves:
    """Median times; sizes one after the other, contenders in alternation at each."""
    curves: Curves = {kind: [] for kind in running}
    for shape in sweep.shapes():
        with arrays_of(shape) as arrays:
            for worker in running.values():
                worker.load(task, shape, arrays)
            compare(running, gradients_allowed=GRADIENTS_ALLOWED)
        for kind, times in alternate(running, rounds).items():
            curves[kind].append(1e3 * statistics.median(times))
        print(f"{task}, {shape}: " + ", ".join(f"{kind} {times[-1]:.3g}" for kind, times in curves.items()), flush=True)
    return curves


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of log(time) over log(size), over the upper half of the sizes."""
    first = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[first:]), np.log(times[first:]), 1)[0])


def flat_up_to(sizes: Sequence[int], times: Sequence[float]) -> int:
    """The largest size that takes at most FLAT times as long as the median over the smaller ones; else the least."""
    flat = [sizes[i] for i in range(1, len(sizes)) if times[i] <= FLAT * statistics.median(times[:i])]
    return max(flat, default=sizes[0])


def tables(
    results: Mapping[tuple[str, str], Curves], sweeps: Mapping[str, Sweep]
) -> dict[str, list[dict[str, object]]]:
    """Times size by size, then what they say about growth."""
    out: dict[str, list[dict[str, object]]] = {}
    growth: dict[str, dict[str, object]] = {}
    for (axis, task), curves in results.items():
        sizes, base = sweeps[axis].values, sweeps[axis].base
        fixed = f"batch {base.batch}, H {base.width}, " + (f"N {base.order}" if axis == "L" else f"L {base.length}")
        out[f"{TASKS[task]}, ms against {axis} ({fixed})"] = [
            {axis: size, **{kind: times[i] for kind, times in curves.items()}} for i, size in enumerate(sizes)
        ]
        for kind, times in curves.items():
            row = growth.setdefault(kind, {"contender": kind})
            row[f"{task}: exponent of {axis}"] = exponent(sizes, times)
            if axis == "N":
                row[f"{task}: flat up to N"] = flat_up_to(sizes, times)
    return {**out, "Growth": list(growth.values())}


def draw(results: Mapping[tuple[str, str], Curves], sweeps: Mapping[str, Sweep], path: Path) -> None:
    """Four panels on logarithmic axes: a layer and a step, against L and against N."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(11, 8.5), sharex="col", sharey="col", layout="constrained")
    colours = plt.get_cmap("tab10").colors
    order = list(next(iter(results.values())))
    for (axis, task), curves in results.items():
        panel = panels[list(TASKS).index(task)][list(sweeps).index(axis)]
        sizes, base = sweeps[axis].values, sweeps[axis].base
        for kind, times in curves.items():
            own, chosen = kind.startswith(LIBRARY), kind == LIBRARY
            panel.loglog(
                sizes,
                times,
                label=f"{kind} (its choice)" if chosen else kind,
                color="black" if chosen else colours[order.index(kind) % len(colours)],
                linestyle="-" if own else "--" if kind.startswith("jax") else "-.",
                linewidth=3 if chosen else 1.4,
                marker="o" if own else "^",
                markersize=4,
                alpha=0.5 if chosen else 1,  # the forms that it chooses show through
            )
        if axis == "L":
            guide = [curves[LIBRARY][-1] * size / sizes[-1] for size in sizes]
            panel.loglog(sizes, guide, color="grey", linewidth=0.8, linestyle=":", label="proportional to L")
        else:
            flat = flat_up_to(sizes, curves[LIBRARY])
            panel.axvline(flat, color="grey", linewidth=0.8, linestyle=":")
            text, side = (
                f" the library's is flat up to N = {flat} ",
                "right" if flat > sizes[len(sizes) // 2] else "left",
            )
            panel.text(flat, 0.98, text, transform=panel.get_xaxis_transform(), va="top", ha=side, fontsize=8)
        fixed = f"H {base.width}, N {base.order}" if axis == "L" else f"L {base.length}, H {base.width}"
        panel.set_title(f"{TASKS[task]} (batch {base.batch}, {fixed})", fontsize=10)
        panel.set_xlabel("length L" if axis == "L" else "order N")
        panel.set_ylabel("ms")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45 if axis == "L" else 0)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender at each size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--without-jax", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; results are printed, not kept")
    options = parser.parse_args()
    with_jax = has_jax() and not options.without_jax
    if not with_jax:
        print("The curves of JAX are left out" + ("." if has_jax() else ": it is not installed (compressm[bench])."))
    kinds = [*IN_TORCH, *(IN_JAX if with_jax else [])]
    if options.smoke:
        kinds = [kind for kind in kinds if kind in (LIBRARY, SCAN, IN_JAX[-1])]
    sweeps = {sweep.axis: sweep for sweep in (SMOKE_SWEEPS if options.smoke else SWEEPS)}
    rounds = 1 if options.smoke else options.rounds
    with workers(kinds, options.threads) as running:
        results = {
            (axis, task): measure(sweep, task, running, rounds) for task in TASKS for axis, sweep in sweeps.items()
        }
    measured = tables(results, sweeps)
    print(table(measured["Growth"]))
    name = f"growth_threads_{options.threads}"
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.smoke else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        picture = f"{name}.png" if find_spec("matplotlib") else None
        if picture:
            draw(results, sweeps, folder / picture)
        else:
            print("There is no picture: matplotlib is not installed (compressm[bench]).")
        write(name, "Growth of time", measured, folder, threads=options.threads, picture=picture)
    print(f"written: {name}.md")


if __name__ == "__main__":
    main()
