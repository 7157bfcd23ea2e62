"""Sums over all positions per channel, and the maps per channel that follow from them.

A signal is a matrix with the channels along its rows' length (channels last) or one row a channel (channels first).
One part is a range of positions, of all channels or of one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.kernels.launch import Kernel, inline, next_part
from compressm.ops.kernels.simd import LANES, first_of, load_first, load_spread, spread, store_first, total

_PART = 1 << 14


def centred_sums(x: Tensor, centre: Tensor, channels_first: bool) -> Tensor:
    """The sums over positions of x - centre and of its square, (2, H) in float64."""
    return _sums(x, x, centre, channels_first, squares=1)


def product_sums(g: Tensor, y: Tensor, channels_first: bool) -> Tensor:
    """The sums over positions of g and of g y, (2, H) in float64."""
    return _sums(g, y, g.new_zeros(g.shape[0 if channels_first else 1]), channels_first, squares=0)


def affine(x: Tensor, y: Tensor, coefficients: Tensor, channels_first: bool) -> Tensor:
    """(x - a - b y) c with (a, b, c) = `coefficients` (3, H)."""
    out = torch.empty_like(x)
    _affine(_parts(x), x, y, out, coefficients.contiguous(), *x.shape, int(channels_first))
    return out


def _sums(g: Tensor, y: Tensor, centre: Tensor, channels_first: bool, squares: int) -> Tensor:
    parts, channels = _parts(g), g.shape[0 if channels_first else 1]
    out = g.new_empty(parts, 2, channels)
    _partial(parts, g, y, centre.contiguous(), out, *g.shape, int(channels_first), squares)
    return out.sum(0, dtype=torch.float64)


def _parts(x: Tensor) -> int:
    return max(1, min(-(-x.numel() // _PART), x.shape[1], x.shape[0] * x.shape[1] // LANES))


@inline
def _range(part: Any, parts: Any, count: Any) -> Any:
    return count * part // parts, count * (part + 1) // parts


@Kernel
def _partial(a: Any) -> None:
    """Arguments: g, y, centre (H), out (parts, 2, H), rows, columns, channels first, squares.

    Sums over the part of g - centre, and of (g - centre) y or, for `squares`, (g - centre)^2.
    """
    g, y, centre, out, rows, columns, channels_first, squares = a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        if channels_first != 0:
            first, last = _range(part, a[1], columns)
            for row in range(rows):
                c = load_spread(centre, row)
                s, r = spread(0.0), spread(0.0)
                for j in range(first, last, LANES):
                    count = last - j
                    x = first_of(load_first(g, row * columns + j, count) - c, count)
                    s = s + x
                    r = r + x * (x if squares != 0 else load_first(y, row * columns + j, count))
                store_first(out, part * 2 * rows + row, spread(total(s)), 1)
                store_first(out, (part * 2 + 1) * rows + row, spread(total(r)), 1)
        else:
            first, last = _range(part, a[1], rows)
            for j in range(0, columns, LANES):
                count = columns - j
                c = load_first(centre, j, count)
                s, r = spread(0.0), spread(0.0)
                for row in range(first, last):
                    x = load_first(g, row * columns + j, count) - c
                    s = s + x
                    r = r + x * (x if squares != 0 else load_first(y, row * columns + j, count))
                store_first(out, part * 2 * columns + j, s, count)
                store_first(out, (part * 2 + 1) * columns + j, r, count)


@Kernel
def _affine(a: Any) -> None:
    """Arguments: x, y, out, coefficients (3, H), rows, columns, channels first."""
    x, y, out, coefficients, rows, columns, channels_first = a[2], a[3], a[4], a[5], a[6], a[7], a[8]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        if channels_first != 0:
            first, last = _range(part, a[1], columns)
            for row in range(rows):
                p, q, s = (
                    load_spread(coefficients, row),
                    load_spread(coefficients, rows + row),
                    load_spread(coefficients, 2 * rows + row),
                )
                for j in range(first, last, LANES):
                    k, count = row * columns + j, last - j
                    store_first(out, k, (load_first(x, k, count) - p - q * load_first(y, k, count)) * s, count)
        else:
            first, last = _range(part, a[1], rows)
            for row in range(first, last):
                for j in range(0, columns, LANES):
                    k, count = row * columns + j, columns - j
                    p, q, s = (
                        load_first(coefficients, j, count),
                        load_first(coefficients, columns + j, count),
                        load_first(coefficients, 2 * columns + j, count),
                    )
                    store_first(out, k, (load_first(x, k, count) - p - q * load_first(y, k, count)) * s, count)
