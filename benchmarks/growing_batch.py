"""What a growing batch makes of the memory that cuts give back: sizes, memory and time of a training step.

    python benchmarks/growing_batch.py            # LRU, L = 784, order 256, 64 and 16, with kernels and without
    python benchmarks/growing_batch.py --smoke    # a tiny model, a few seconds

The sizes are those that `GrowingBatch` finds for a model that is cut from order to order, from the first size on.
Each row is measured on a model of that order from the start, in processes of its own: peak memory is the growth of the
resident set over three warm steps, and the time of a step the median over turns in which the rows follow one another.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _race import Worker, alternate, arrays_of, peak_memory, ratio
from _report import RESULTS, table, write
from _shape import TINY, Shape
from _torch_contender import LIBRARY, WITHOUT_NUMBA
from torch import nn

from compressm.compress import compress_
from compressm.layers import ModelConfig, SequenceModel
from compressm.ops import kernels_run, use_kernels
from compressm.reduction.criteria import FixedOrder
from compressm.training import GrowingBatch
from compressm.training.presets import preset

SHAPES = (Shape("smnist", 32, 784, 32, 256, 2),)
ORDERS, MAXIMUM = (64, 16), 1024


def grown(shape: Shape, orders: tuple[int, ...], kind: str) -> list[int]:
    """The batch size after each cut."""
    use_kernels(kind == LIBRARY)
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(inputs=1, width=shape.width, order=shape.order, blocks=shape.blocks, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    growing = GrowingBatch(model, optimizer, size=shape.batch, maximum=MAXIMUM)

    def step() -> None:
        with growing.measured():
            loss = nn.functional.cross_entropy(
                model(torch.randn(growing.size, shape.length, 1)), torch.zeros(growing.size).long()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    step()
    found = []
    for order in orders:
        compress_(model, replace(preset("white").settings, criterion=FixedOrder(order)), optimizer=optimizer)
        step()
        found.append(growing.size)
    return found


def measure(shape: Shape, orders: tuple[int, ...], kind: str, rounds: int, threads: int) -> list[dict[str, object]]:
    """A row for the uncut model, and for each cut one with the first batch and one with the grown one."""
    shapes = {"uncut": shape}
    for order, size in zip(orders, grown(shape, orders, kind), strict=True):
        shapes[f"cut to {order}"] = replace(shape, order=order)
        shapes[f"cut to {order}, grown"] = replace(shape, order=order, batch=size)
    with ExitStack() as stack:
        arrays = {name: stack.enter_context(arrays_of(each)) for name, each in shapes.items()}
        peaks = {name: peak_memory(kind, "step", shapes[name], arrays[name], threads)[0] for name in shapes}
        running = {name: stack.enter_context(Worker(kind, threads)) for name in shapes}
        for name, worker in running.items():
            worker.load("step", shapes[name], arrays[name])
        times = alternate(running, rounds)
    cases = {name: shapes[name].batch / statistics.median(seconds) for name, seconds in times.items()}
    return [
        {
            "model": name,
            "batch": shapes[name].batch,
            "peak MB": peaks[name],
            "MB / uncut": ratio(peaks[name], peaks["uncut"]),
            "median ms": 1e3 * statistics.median(times[name]),
            "cases / s": cases[name],
            "times uncut": cases[name] / cases["uncut"],
        }
        for name in shapes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--smoke", action="store_true", help="a tiny model; results are printed, not kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes, orders, rounds = ((TINY,), (3,), 1) if options.smoke else (SHAPES, ORDERS, options.rounds)
    kinds = [LIBRARY, WITHOUT_NUMBA] if kernels_run() and not options.smoke else [LIBRARY]
    measured: dict[str, list[dict[str, object]]] = {}
    with TemporaryDirectory() as scratch:
        for shape in shapes:
            for kind in kinds:
                heading = f"{shape}, {kind}"
                measured[heading] = measure(shape, orders, kind, rounds, options.threads)
                print(f"{heading}\n{table(measured[heading])}\n", flush=True)
        folder = Path(scratch) if options.smoke else RESULTS
        name = f"growing_batch_threads_{options.threads}"
        write(name, "A growing batch", measured, folder, threads=options.threads)
    print(f"written: {name}.md")


if __name__ == "__main__":
    main()
