"""One time step of a trained model: an ordinary step, the library's step, the streamer, and its matrix products alone.

    python benchmarks/streaming.py             # H 128, N 256 and H 512, N 384, 6 blocks each, batch 1, float32
    python benchmarks/streaming.py --smoke     # tiny shapes, a few seconds

Calls of all kinds alternate, ten of each at a time and the first of each not counted, so that a busy machine slows
all, and each finds in the caches what its own calls left there. The ordinary step has each formula in its own words,
as one would write it. A streamer is measured with compiled kernels, where numba is installed, and without. "Products
alone" are the streamer's matrix-vector products on the same matrices, one after the other; "one product" is a single
one with as many weights as the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _report import RESULTS, table, write
from torch import Tensor
from torch.nn import functional

from compressm.layers import ModelConfig, SequenceModel, Streamer, Task
from compressm.layers.streaming.program import prepare
from compressm.ops import kernels_run, use_kernels

# H, N, blocks, calls of each kind
SHAPES = [(8, 256, 1, 2000), (128, 256, 6, 2000), (128, 32, 6, 2000), (512, 384, 6, 500)]
SMOKE_SHAPES = [(8, 4, 1, 20), (16, 8, 2, 20)]
A_ROUND = 10


class PlainStep:
    """A step as one would write it: each formula in its own words, on the parameters as they are stored."""

    def __init__(self, model: SequenceModel) -> None:
        self.model = model
        self.states = [torch.zeros(1, block.ssm.order, dtype=torch.complex64) for block in model.blocks]

    @torch.no_grad()
    def __call__(self, u: Tensor) -> Tensor:
        x = functional.linear(u, self.model.encoder.weight, self.model.encoder.bias)
        for k, block in enumerate(self.model.blocks):
            norm, lru, gate = block.norm, block.ssm, block.gate
            z = (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
            pole = torch.exp(torch.complex(-torch.exp(lru.nu_log), torch.exp(lru.theta_log)))
            drive = torch.exp(lru.gamma_log) * torch.complex(z @ lru.B_re.T, z @ lru.B_im.T)
            state = self.states[k] = pole * self.states[k] + drive
            y = state.real @ lru.C_re.T - state.imag @ lru.C_im.T + lru.D * z
            y = functional.glu(functional.linear(functional.gelu(y), gate.weight, gate.bias))
            x = x + y
        return functional.linear(x, self.model.head.weight, self.model.head.bias)


def trained(width: int, order: int, blocks: int) -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(inputs=1, outputs=10, width=width, order=order, blocks=blocks, task=Task.SEQUENCE)
    model = SequenceModel(config).eval()
    for block in model.blocks:
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
    return model


def products_alone(model: SequenceModel) -> Callable[[], None]:
    """The matrix-vector products of a streamer's step, on the same matrices in the same order, and nothing else."""
    program = prepare(model, batch=1)
    calls = [c for call in (*program.calls, *program.head) for c in _products(call)]

    def call() -> None:
        for product in calls:
            product()

    return call


def _products(call: Callable[[], object]) -> list[Callable[[], object]]:
    """What of a call of a program is a matrix-vector product."""
    if kernels_run():
        from compressm.ops.kernels.tape import Tape

        if isinstance(call, Tape):
            return [Tape([i for i in call.instructions if i.multiplies])]
    return [call] if getattr(call, "func", None) in (np.dot, np.add) else []


def without_kernels(model: SequenceModel) -> dict[str, Callable[[], object]]:
    """A streamer in plain PyTorch and NumPy, and its products."""
    before = use_kernels(False)
    streamer, x = Streamer(model), torch.randn(1, 1)
    kinds = {
        "Streamer.step, no kernels": lambda: streamer.step(x),
        "its products alone, no kernels": products_alone(model),
    }
    use_kernels(before)
    return kinds


def one_product(model: SequenceModel) -> tuple[Callable[[], object], Callable[[], object]]:
    """One matrix-vector product with as many weights as the model has, by NumPy and by PyTorch."""
    width = model.config.width
    rows = sum(p.numel() for p in model.parameters()) // width
    vector, matrix = torch.randn(width), torch.randn(rows, width)
    result, transposed = torch.empty(rows), np.ascontiguousarray(matrix.mT.numpy())
    return (
        partial(np.dot, vector.numpy(), transposed, out=result.numpy()),
        partial(torch.mv, matrix, vector, out=result),
    )


def measure(width: int, order: int, blocks: int, calls: int) -> list[dict[str, object]]:
    model = trained(width, order, blocks)
    plain, streamer, x = PlainStep(model), Streamer(model), torch.randn(1, 1)
    check_agreement(plain, streamer)
    state = model.initial_state(1)

    @torch.no_grad()
    def library() -> None:
        nonlocal state
        _, state = model.step(x, state)

    by_numpy, by_torch = one_product(model)
    kinds: dict[str, Callable[[], object]] = {
        "ordinary step": lambda: plain(x),
        "model.step": library,
        "Streamer.step": lambda: streamer.step(x),
        "its products alone": products_alone(model),
        **(without_kernels(model) if kernels_run() else {}),
        "one product, NumPy": by_numpy,
        "one product, PyTorch": by_torch,
    }
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    for round_ in range(calls // A_ROUND + 1):
        for kind, call in kinds.items():
            call()
            for _ in range(A_ROUND):
                start = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - start
                if round_ > 0:  # the first round warms up
                    times[kind].append(elapsed)
    medians = {kind: statistics.median(values) / 1e3 for kind, values in times.items()}
    return [
        {
            "kind": kind,
            "median us": medians[kind],
            "p99 us": sorted(values)[int(0.99 * len(values))] / 1e3,
            "median / Streamer.step": medians[kind] / medians["Streamer.step"],
            "median / one product, NumPy": medians[kind] / medians["one product, NumPy"],
        }
        for kind, values in times.items()
    ]


def check_agreement(plain: PlainStep, streamer: Streamer) -> None:
    """Stop unless both steps compute the same function."""
    for x in torch.randn(20, 1, 1):
        wanted, got = plain(x), streamer.step(x)
    error = float((wanted - got).abs().max() / wanted.abs().max())
    if error > 1e-4:
        raise SystemExit(f"The two steps differ by {error:.3g}; nothing was measured.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results are printed, not kept")
    parser.add_argument("--width", type=int, help="only the shapes of this H; results are printed, not kept")
    parser.add_argument("--threads", type=int, help="number of PyTorch's threads (its default otherwise)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "by default")
    measured: dict[str, list[dict[str, object]]] = {}
    shapes = [s for s in (SMOKE_SHAPES if options.smoke else SHAPES) if options.width in (None, s[0])]
    for width, order, blocks, calls in shapes:
        heading = f"One step: H {width}, N {order}, blocks {blocks}, batch 1, float32 (NumPy's threads: {blas})"
        measured[heading] = measure(width, order, blocks, calls)
        print(f"{heading}\n{table(measured[heading])}\n")
    with tempfile.TemporaryDirectory() as scratch:
        name = f"streaming_threads_{torch.get_num_threads()}"
        path = write(
            name, "Streaming inference", measured, Path(scratch) if options.smoke or options.width else RESULTS
        )
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
