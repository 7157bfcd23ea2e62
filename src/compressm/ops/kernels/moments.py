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

_BYTES = 4
_PART = 1 << 14


def mean_and_variance(x: Tensor, channels_first: bool) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over positions, (H,) each in float64.

    Each part of the positions is centred by itself, so that a large mean costs no digits (Chan, Golub, LeVeque 1983).
    """
    parts, channels = _parts(x, channels_first), x.shape[0 if channels_first else 1]
    out = x.new_empty(4, parts, channels)
    _local(parts, x, out, *x.shape, int(channels_first))
    count, centre, rest, squares = out.double()
    total = x.numel() / channels
    means = centre + rest / count
    mean = (count * means).sum(0) / total
    var = (squares - rest * rest / count + count * (means - mean) ** 2).sum(0) / total
    return mean, var


def product_sums(g: Tensor, y: Tensor, centre: Tensor, channels_first: bool) -> Tensor:
    """The sums over positions of g and of g (y - centre), (2, H) in float64."""
    parts, channels = _parts(g, channels_first), g.shape[0 if channels_first else 1]
    out = g.new_empty(parts, 2, channels)
    _partial(parts, g, y, centre.contiguous(), out, *g.shape, int(channels_first))
    return out.sum(0, dtype=torch.float64)


def affine(x: Tensor, y: Tensor, coefficients: Tensor, channels_first: bool) -> Tensor:
    """(x - a - b (y - c)) d with (a, b, c, d) = `coefficients` (4, H)."""
    out = torch.empty_like(x)
    _affine(_parts(x, channels_first), x, y, out, coefficients.contiguous(), *x.shape, int(channels_first))
    return out


def _parts(x: Tensor, channels_first: bool) -> int:
    """At most one a position."""
    return max(1, min(-(-x.numel() // _PART), x.shape[1 if channels_first else 0]))


@inline
def _range(part: Any, parts: Any, count: Any) -> Any:
    return count * part // parts, count * (part + 1) // parts


@inline
def _row_sums(x: Any, first: Any, last: Any, centre: Any) -> Any:
    """16 sums each of x - centre and of its square, over the numbers first .. last."""
    s, r = spread(0.0), spread(0.0)
    for j in range(first, last, LANES):
        y = first_of(load_first(x, j, last - j) - centre, last - j)
        s, r = s + y, r + y * y
    return s, r


@Kernel
def _local(a: Any) -> None:
    """Arguments: x, out (4, parts, H), rows, columns, channels first.

    Over each part: the number of positions, about the mean, and the sums of the differences from it and their squares.
    """
    x, out, rows, columns, channels_first = a[2], a[3], a[4], a[5], a[6]
    plane = a[1] * (rows if channels_first != 0 else columns)
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        if channels_first != 0:
            first, last = _range(part, a[1], columns)
            for row in range(rows):
                here = x + row * columns * _BYTES
                k, share = part * rows + row, spread(1.0 / (last - first))
                s, _ = _row_sums(here, first, last, spread(0.0))
                centre = spread(total(s)) * share
                s, r = _row_sums(here, first, last, centre)
                store_first(out, k, spread(last - first), 1)
                store_first(out, k + plane, centre, 1)
                store_first(out, k + 2 * plane, spread(total(s)), 1)
                store_first(out, k + 3 * plane, spread(total(r)), 1)
        else:
            first, last = _range(part, a[1], rows)
            share = spread(1.0 / (last - first))
            for j in range(0, columns, LANES):
                k, count = part * columns + j, columns - j
                centre = spread(0.0)
                for row in range(first, last):
                    centre = centre + load_first(x, row * columns + j, count)
                centre = centre * share
                s, r = spread(0.0), spread(0.0)
                for row in range(first, last):
                    y = load_first(x, row * columns + j, count) - centre
                    s, r = s + y, r + y * y
                store_first(out, k, spread(last - first), count)
                store_first(out, k + plane, centre, count)
                store_first(out, k + 2 * plane, s, count)
                store_first(out, k + 3 * plane, r, count)


@Kernel
def _partial(a: Any) -> None:
    """Sums over the part of g and of g (y - centre).

    Arguments: g, y, centre (H), out (parts, 2, H), rows, columns, channels first.
    """
    g, y, centre, out, rows, columns, channels_first = a[2], a[3], a[4], a[5], a[6], a[7], a[8]
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
                    k, count = row * columns + j, last - j
                    x = first_of(load_first(g, k, count), count)
                    s, r = s + x, r + x * (load_first(y, k, count) - c)
                store_first(out, part * 2 * rows + row, spread(total(s)), 1)
                store_first(out, (part * 2 + 1) * rows + row, spread(total(r)), 1)
        else:
            first, last = _range(part, a[1], rows)
            for j in range(0, columns, LANES):
                count = columns - j
                c = load_first(centre, j, count)
                s, r = spread(0.0), spread(0.0)
                for row in range(first, last):
                    k = row * columns + j
                    x = load_first(g, k, count)
                    s, r = s + x, r + x * (load_first(y, k, count) - c)
                store_first(out, part * 2 * columns + j, s, count)
                store_first(out, (part * 2 + 1) * columns + j, r, count)


@Kernel
def _affine(a: Any) -> None:
    """Arguments: x, y, out, coefficients (4, H), rows, columns, channels first."""
    x, y, out, coefficients, rows, columns, channels_first = a[2], a[3], a[4], a[5], a[6], a[7], a[8]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        if channels_first != 0:
            first, last = _range(part, a[1], columns)
            for row in range(rows):
                p, q = load_spread(coefficients, row), load_spread(coefficients, rows + row)
                c, s = load_spread(coefficients, 2 * rows + row), load_spread(coefficients, 3 * rows + row)
                for j in range(first, last, LANES):
                    k, count = row * columns + j, last - j
                    store_first(out, k, (load_first(x, k, count) - p - q * (load_first(y, k, count) - c)) * s, count)
        else:
            first, last = _range(part, a[1], rows)
            for row in range(first, last):
                for j in range(0, columns, LANES):
                    k, count = row * columns + j, columns - j
                    p, q = load_first(coefficients, j, count), load_first(coefficients, columns + j, count)
                    c = load_first(coefficients, 2 * columns + j, count)
                    s = load_first(coefficients, 3 * columns + j, count)
                    store_first(out, k, (load_first(x, k, count) - p - q * (load_first(y, k, count) - c)) * s, count)
