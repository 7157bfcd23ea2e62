"""The pointwise parts of a block: GELU with dropout, and the gate with dropout and skip connection, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.kernels.elementary import kept, normal, sigmoid
from compressm.ops.kernels.launch import Kernel, next_part
from compressm.ops.kernels.simd import LANES, load_first, negate, spread, store_first

_PART = 1 << 14  # elements of one part

Draw = tuple[int, int, int]
"""Two random keys, and how many of 2^16 elements dropout drops."""

Rows = tuple[int, int, int, int]
"""Number and width of the rows, their distance in `both`, and the distance from v to s."""


def gelu(x: Tensor, draw: Draw, first: int = 0) -> Tensor:
    """dropout(x Phi(x)); `first` is the number of x's first element among dropout's choices, here and below."""
    y = torch.empty_like(x)
    _gelu(_parts(x), x, y, x.numel(), *draw, first)
    return y


def gelu_gradient(
    grad: Tensor, x: Tensor, draw: Draw, out: Tensor | None = None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradient of x from that of `gelu`, in `out` (`grad` itself, say) if given; and the output of `gelu` anew."""
    out, y = torch.empty_like(x) if out is None else out, torch.empty_like(x)
    _gelu_gradient(_parts(x), grad, x, out, y, x.numel(), *draw, first)
    return out, y


def gate(both: Tensor, skip: Tensor, rows: Rows, draw: Draw) -> Tensor:
    """skip + dropout(v sigmoid(s))."""
    y = torch.empty_like(skip)
    _gate(min(_parts(skip), rows[0]), both, skip, y, *rows, skip.numel(), *draw)
    return y


def gate_rows(both: Tensor, skip: Tensor, out: Tensor, closed: Tensor, draw: Draw, first: int) -> None:
    """out = skip + dropout(v sigmoid(s)) with (v | s) the rows of `both`; s goes to `closed`."""
    rows, width = skip.shape
    _gate_rows(_parts(skip), both, skip, out, closed, rows, width, *draw, first)


def gate_rows_gradient(
    grad: Tensor, skip: Tensor, out: Tensor, closed: Tensor, both: Tensor, draw: Draw, first: int
) -> None:
    """The gradient of the rows (v | s) of `gate_rows`, into `both`, from that of its output."""
    rows, width = skip.shape
    _gate_rows_gradient(_parts(skip), grad, skip, out, closed, both, rows, width, *draw, first)


def gate_gradient(grad: Tensor, both: Tensor, rows: Rows, draw: Draw) -> Tensor:
    """The gradient of `both` from that of `gate`."""
    out = torch.empty_like(both)
    _gate_gradient(min(_parts(grad), rows[0]), grad, both, out, *rows, grad.numel(), *draw)
    return out


def _parts(x: Tensor) -> int:
    return -(-x.numel() // _PART)


@Kernel
def _gelu(a: Any) -> None:
    """y = dropout(x Phi(x)). Arguments: x, y, size, key, salt, dropped of 2^16, number of the first."""
    size, key, salt, dropped, start = a[4], a[5], a[6], a[7], a[8]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for i in range(part * _PART, min(size, (part + 1) * _PART), LANES):
            x = load_first(a[2], i, size - i)
            phi, _ = normal(x)
            store_first(a[3], i, x * phi * kept(start + i, key, salt, dropped, scale), size - i)


@Kernel
def _gelu_gradient(a: Any) -> None:
    """g_x = dropout(g) (Phi(x) + x phi(x)), y = dropout(x Phi(x)).

    Arguments: g, x, g_x, y, size, key, salt, dropped of 2^16, number of the first.
    """
    size, key, salt, dropped, start = a[6], a[7], a[8], a[9], a[10]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for i in range(part * _PART, min(size, (part + 1) * _PART), LANES):
            x = load_first(a[3], i, size - i)
            phi, bell = normal(x)
            keep = kept(start + i, key, salt, dropped, scale)
            g = load_first(a[2], i, size - i) * keep
            store_first(a[4], i, g * (phi + x * bell), size - i)
            store_first(a[5], i, x * phi * keep, size - i)


@Kernel
def _gate(a: Any) -> None:
    """y = x + dropout(v sigmoid(s)). Arguments: v s, x, y, rows, width, stride, offset, size, key, salt, dropped.

    Element j of row r has its v at `r stride + j`, its s `offset` further on, and its x and y at `r width + j`. The
    last row ends with `size`.
    """
    both, x, y = a[2], a[3], a[4]
    rows, width, stride, offset, size, key, salt, dropped = a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for row in range(rows * part // a[1], rows * (part + 1) // a[1]):
            end = min(width, size - row * width)
            for j in range(0, end, LANES):
                i, k = row * width + j, row * stride + j
                v, s = load_first(both, k, end - j), load_first(both, k + offset, end - j)
                z = v * sigmoid(s) * kept(i, key, salt, dropped, scale)
                store_first(y, i, load_first(x, i, end - j) + z, end - j)


@Kernel
def _gate_gradient(a: Any) -> None:
    """The gradients of v and s. Arguments: g, v s, g_v g_s, then as _gate from `rows` on."""
    grad, both, out = a[2], a[3], a[4]
    rows, width, stride, offset, size, key, salt, dropped = a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for row in range(rows * part // a[1], rows * (part + 1) // a[1]):
            end = min(width, size - row * width)
            for j in range(0, end, LANES):
                i, k = row * width + j, row * stride + j
                v, s = load_first(both, k, end - j), sigmoid(load_first(both, k + offset, end - j))
                g = load_first(grad, i, end - j) * kept(i, key, salt, dropped, scale) * s
                store_first(out, k, g, end - j)
                store_first(out, k + offset, g * v * (spread(1.0) + negate(s)), end - j)


@Kernel
def _gate_rows(a: Any) -> None:
    """y = x + dropout(v sigmoid(s)). Arguments: v | s (rows, 2 width), x, y, s, rows, width, key, salt, dropped, number
    of the first.
    """
    both, x, y, closed = a[2], a[3], a[4], a[5]
    rows, width, key, salt, dropped, start = a[6], a[7], a[8], a[9], a[10], a[11]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for row in range(rows * part // a[1], rows * (part + 1) // a[1]):
            for j in range(0, width, LANES):
                i, k, count = row * width + j, 2 * row * width + j, width - j
                v, s = load_first(both, k, count), load_first(both, k + width, count)
                store_first(closed, i, s, count)
                z = v * sigmoid(s) * kept(start + i, key, salt, dropped, scale)
                store_first(y, i, load_first(x, i, count) + z, count)


@Kernel
def _gate_rows_gradient(a: Any) -> None:
    """The gradients of v and s, of which v sigmoid(s) and dropout are had from y - x.

    Arguments: g, x, y, s, g_v | g_s, then as _gate_rows from `rows` on.
    """
    grad, x, y, closed, out = a[2], a[3], a[4], a[5], a[6]
    rows, width, key, salt, dropped, start = a[7], a[8], a[9], a[10], a[11], a[12]
    scale = spread(65536.0 / (65536.0 - dropped))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        for row in range(rows * part // a[1], rows * (part + 1) // a[1]):
            for j in range(0, width, LANES):
                i, k, count = row * width + j, 2 * row * width + j, width - j
                g, s = load_first(grad, i, count), sigmoid(load_first(closed, i, count))
                store_first(out, k, g * kept(start + i, key, salt, dropped, scale) * s, count)
                z = load_first(y, i, count) - load_first(x, i, count)
                store_first(out, k + width, g * z * (spread(1.0) + negate(s)), count)
