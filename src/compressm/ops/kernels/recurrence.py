"""The diagonal recurrence over one block of time, in place, and its adjoint.

Rows are steps, then sequences: row t batch + k holds [re (N) | im (N)] of the states of sequence k. A pass takes far
less time than the matrix products around it and works on what one core has in its cache, so one thread does it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.kernels.launch import Kernel, next_part
from compressm.ops.kernels.simd import LANES, load_first, store_first


def advance_(x: Tensor, start: Tensor, pole: Tensor, defect: Tensor) -> Tensor:
    """x[t] += pole x[t-1] with x[-1] = start; returns x[T-1] + defect start. Shapes as for the kernel below."""
    batch, order, end = len(start), len(pole) // 2, torch.empty_like(start)
    _advance(batch, x, start, end, pole, defect, len(x) // batch, batch, order, threads=1)
    return end


def retreat_(g: Tensor, x: Tensor, start: Tensor, ahead: Tensor, sums: Tensor, pole: Tensor, defect: Tensor) -> None:
    """The adjoint of `advance_`, which adds to `sums` and replaces `ahead`. Shapes as for the kernel below."""
    batch, order = len(start), len(pole) // 2
    _retreat(batch, g, x, start, ahead, sums, pole, defect, len(x) // batch, batch, order, threads=1)


@Kernel
def _advance(a: Any) -> None:
    """x[t] += pole x[t-1] with x[-1] = start; end = x[T-1] + defect start.

    Arguments: x (T batch, 2 N), start, end (batch, 2 N), pole, defect (2 N), T, batch, N.
    """
    x, start, end, pole, defect, steps, batch, order = a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        here = part * 2 * order
        before, row, place = start, here, here
        for _ in range(steps):
            for n in range(0, order, LANES):
                count = order - n
                p, q = load_first(pole, n, count), load_first(pole, order + n, count)
                re, im = load_first(before, place + n, count), load_first(before, place + order + n, count)
                v, w = load_first(x, row + n, count), load_first(x, row + order + n, count)
                store_first(x, row + n, v + p * re - q * im, count)
                store_first(x, row + order + n, w + p * im + q * re, count)
            before, place, row = x, row, row + batch * 2 * order
        for n in range(0, order, LANES):
            count = order - n
            p, q = load_first(defect, n, count), load_first(defect, order + n, count)
            re, im = load_first(start, here + n, count), load_first(start, here + order + n, count)
            v, w = load_first(x, place + n, count), load_first(x, place + order + n, count)
            store_first(end, here + n, v + p * re - q * im, count)
            store_first(end, here + order + n, w + p * im + q * re, count)


@Kernel
def _retreat(a: Any) -> None:
    """g[t] += conj(pole) g[t+1], with `ahead` added to g[T-1]; then ahead' = conj(pole) g[0] + conj(defect) ahead.

    Adds sum_t conj(x[t-1]) g[t] to `sums`, x[-1] = start. Arguments: g, x (T batch, 2 N), start, ahead, sums
    (batch, 2 N), pole, defect (2 N), T, batch, N. `ahead` is replaced by ahead'.
    """
    g, x, start, ahead, sums = a[2], a[3], a[4], a[5], a[6]
    pole, defect, steps, batch, order = a[7], a[8], a[9], a[10], a[11]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        here = part * 2 * order
        row = here + (steps - 1) * batch * 2 * order
        for t in range(steps - 1, -1, -1):
            below, place = (start, here) if t == 0 else (x, row - batch * 2 * order)
            for n in range(0, order, LANES):
                count = order - n
                v, w = load_first(g, row + n, count), load_first(g, row + order + n, count)
                if t == steps - 1:
                    v, w = v + load_first(ahead, here + n, count), w + load_first(ahead, here + order + n, count)
                else:
                    p, q = load_first(pole, n, count), load_first(pole, order + n, count)
                    later = row + batch * 2 * order
                    re, im = load_first(g, later + n, count), load_first(g, later + order + n, count)
                    v, w = v + p * re + q * im, w + p * im - q * re
                store_first(g, row + n, v, count)
                store_first(g, row + order + n, w, count)
                re, im = load_first(below, place + n, count), load_first(below, place + order + n, count)
                s, r = load_first(sums, here + n, count), load_first(sums, here + order + n, count)
                store_first(sums, here + n, s + re * v + im * w, count)
                store_first(sums, here + order + n, r + re * w - im * v, count)
            row -= batch * 2 * order
        row = here
        for n in range(0, order, LANES):
            count = order - n
            p, q = load_first(pole, n, count), load_first(pole, order + n, count)
            d, e = load_first(defect, n, count), load_first(defect, order + n, count)
            re, im = load_first(g, row + n, count), load_first(g, row + order + n, count)
            v, w = load_first(ahead, here + n, count), load_first(ahead, here + order + n, count)
            store_first(ahead, here + n, p * re + q * im + d * v + e * w, count)
            store_first(ahead, here + order + n, p * im - q * re + d * w - e * v, count)
