"""One forward and backward pass of each kind of layer against the plain loop over time of its own recurrence.

    python benchmarks/layer_forms.py              # batch 16, L 512, H 32, N 32
    python benchmarks/layer_forms.py --smoke      # tiny shapes, a few seconds

The loop is plain torch under autograd: the discrete system once from the parameters, then one step after the other.
A layer without a system of its own runs its `step` instead. Calls of both alternate, so that a busy machine
slows both; the first call of each is not counted. Freed memory is kept, as in training: glibc would otherwise return
the loop's graph to the system within the next calls of the sequence form, which can double their time. Each form
gets its input and the gradient of its output in the layout that it asks for, as it does in a model.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _report import RESULTS, table, write
from torch import Tensor

from compressm.layers import FAMILIES, DenseBank, DenseSystem, DiagonalBank, DiagonalSystem, LayerKind, SequenceLayer
from compressm.ops import bank_reference, dense_reference, diagonal_reference, keep_freed_memory

SHAPE, SMOKE_SHAPE = (16, 512, 32, 32), (2, 24, 3, 4)  # batch, L, H, N


def plain(layer: SequenceLayer, u: Tensor) -> Tensor:
    """The layer's output by a plain loop over time."""
    match layer.system():
        case DiagonalSystem(nu, theta, b_re, b_im, c_re, c_im, d):
            return diagonal_reference(nu, theta, b_re, b_im, c_re, c_im, u) + d * u
        case DenseSystem(a, b, c, d):
            return dense_reference(a, b, c, u) + u @ d.mT
        case DiagonalBank(nu, theta, w_re, w_im, d):
            return bank_reference(nu, theta, w_re, w_im, u) + d * u
        case DenseBank(a, b, c, d):
            dtype = u.dtype.to_complex() if a.is_complex() else u.dtype
            return dense_bank_loop(a.to(dtype), b.to(dtype), c.to(dtype), u).real + d * u
    state, outputs = layer.initial_state(len(u)), []
    for k in range(u.shape[1]):
        y, state = layer.step(u[:, k], state)
        outputs.append(y)
    return torch.stack(outputs, 1)


def dense_bank_loop(a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
    x, outputs = b.new_zeros(len(u), *b.shape), []
    for k in range(u.shape[1]):
        x = torch.einsum("hij,bhj->bhi", a, x) + b * u[:, k, :, None]
        outputs.append((c * x).sum(-1))
    return torch.stack(outputs, 1)


def race(layer: SequenceLayer, u: Tensor, rounds: int) -> tuple[float, float]:
    """Median milliseconds of forward and backward: the layer's sequence form, and the plain loop."""
    layout, weight = layer.layout(u.shape[0], u.shape[1]), torch.randn(u.shape)
    arranged, arranged_weight = layout.arrange(u), layout.arrange(weight)
    leaves = [p for p in layer.parameters() if p.requires_grad]

    def timed(run: Callable[[], Tensor], grad: Tensor) -> float:
        start = time.perf_counter()
        torch.autograd.grad(run(), leaves, grad)
        return 1e3 * (time.perf_counter() - start)

    found = [
        (timed(lambda: layer(arranged), arranged_weight), timed(lambda: plain(layer, u), weight))
        for _ in range(rounds + 1)
    ][1:]
    return statistics.median(f for f, _ in found), statistics.median(p for _, p in found)


def rows(shape: tuple[int, int, int, int], rounds: int) -> list[dict[str, object]]:
    batch, length, width, order = shape
    measured: list[dict[str, object]] = []
    lru = math.nan
    ordered = sorted(LayerKind, key=lambda kind: kind is not LayerKind.LRU)  # the others are compared with it
    for kind, options in [*((kind, {}) for kind in ordered), (LayerKind.LINOSS, {"discretization": "imex"})]:
        torch.manual_seed(0)
        layer = FAMILIES[kind].layer(width, order, **options).train()
        u = torch.randn(batch, length, width)
        with torch.no_grad():
            wanted, found = plain(layer, u), layer(u)
        assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max())), kind
        form, loop = race(layer, u, rounds)
        lru = form if kind is LayerKind.LRU else lru
        measured.append(
            {
                "layer": " ".join([kind.value, *options.values()]),
                "sequence form ms": form,
                "plain loop ms": loop,
                "loop / form": loop / form,
                "form / LRU's form": form / lru,
            }
        )
        print(table(measured[-1:]).splitlines()[-1], flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, nothing written to the results")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    shape, rounds = (SMOKE_SHAPE, 1) if arguments.smoke else (SHAPE, 7)
    heading = "Forward and backward: batch {}, L {}, H {}, N {}".format(*shape)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if arguments.smoke else RESULTS
        measured = {heading: rows(shape, rounds)}
        print(write("layer_forms", "Kinds of layers: sequence form and plain loop", measured, folder).read_text())


if __name__ == "__main__":
    main()
