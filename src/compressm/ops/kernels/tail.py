"""What follows the recurrence in a block, in one pass forward and one backward: activation, linear map, gate, skip.

Signals are (channels, positions). A part is a range of positions, taken 128 at a time through memory that stays in the
first-level cache, as (8, channels, 16): 16 positions of one channel together. The linear map is one matrix with the
bias as its last column, and the activated signal has a last channel of ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressm.ops.kernels.activation import Draw
from compressm.ops.kernels.elementary import kept, normal, sigmoid
from compressm.ops.kernels.launch import Kernel, inline, next_part
from compressm.ops.kernels.simd import LANES, load, load_first, negate, spread, store, store_first
from compressm.ops.kernels.tiles import COLUMNS, ROWS, load_tile, padded, store_tile, times_matrix, times_signals, zeros

_BYTES = 4
_ROW = LANES * _BYTES
_VECTORS = 8  # vectors of each channel at a time
_CHUNK = _VECTORS * LANES
_LEAST = 16 * _CHUNK  # positions of one part, at least


def forward(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, inner: Draw, outer: Draw) -> Tensor:
    """skip + dropout(v sigmoid(s)) with (v, s) = W dropout(x Phi(x)) + w, for x (H, P) and skip (O, P)."""
    (inputs, positions), outputs = x.shape, skip.shape[0]
    matrix = _joined(weight, bias)
    size, y = _size(inputs), torch.empty_like(skip)
    parts = -(-positions // size)
    working = x.new_empty(parts, _VECTORS * sum(matrix.shape) * LANES)
    _forward(parts, x, skip, y, matrix, working, inputs, outputs, positions, *matrix.shape, *inner, *outer, size)
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, inner: Draw, outer: Draw
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, W and w from that of `forward`."""
    (inputs, positions), outputs = x.shape, grad.shape[0]
    matrix = _joined(weight, bias)
    (rows, columns), size, grad_x = matrix.shape, _size(inputs), torch.empty_like(x)
    parts = -(-positions // size)
    sums = x.new_zeros(parts, rows * columns * LANES)
    working = x.new_empty(parts, _VECTORS * (rows + 3 * columns) * LANES)
    sizes = inputs, outputs, positions, rows, columns
    _backward(parts, grad, x, grad_x, matrix, working, sums, *sizes, *inner, *outer, size)
    by_matrix = sums.view(parts, rows, columns, LANES).sum((0, 3), dtype=torch.float64).to(x.dtype)
    return grad_x, by_matrix[: 2 * outputs, :inputs].contiguous(), by_matrix[: 2 * outputs, inputs].contiguous()


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    """[W | w] with zeros up to sizes that tiles divide."""
    rows, columns = weight.shape[0], weight.shape[1] + 1
    return functional.pad(torch.cat([weight, bias[:, None]], 1), (0, padded(columns) - columns, 0, padded(rows) - rows))


def _size(inputs: int) -> int:
    """The positions of one part, whose sums take far less memory than its signals."""
    return max(_LEAST, _CHUNK * inputs)


@inline
def _fill(z: Any, inputs: Any, columns: Any) -> None:
    """The channels of z beyond `inputs`: ones, then zeros."""
    for v in range(_VECTORS):
        for k in range(inputs, columns):
            store(z, (v * columns + k) * LANES, spread(1.0) if k == inputs else spread(0.0))


@inline
def _mapped(matrix: Any, z: Any, inputs: Any, rows: Any, columns: Any, both: Any) -> None:
    """both = matrix z."""
    for v in range(0, _VECTORS, COLUMNS):
        for r in range(0, rows, ROWS):
            signal = z + v * columns * _ROW
            y = times_matrix(
                zeros(), matrix + r * columns * _BYTES, columns, 1, signal, columns * LANES, LANES, inputs + 1
            )
            store_tile(both + (v * rows + r) * _ROW, LANES, rows * LANES, y)


@Kernel
def _forward(a: Any) -> None:
    """Arguments: x, skip, y, matrix (R, C), working (parts, 8 (R + C), 16), H, O, P, R, C, two draws, size of a part.

    Dropout's random bits belong to the elements' numbers in (H, P) and (O, P).
    """
    matrix, inputs, outputs, positions, rows, columns = a[5], a[7], a[8], a[9], a[10], a[11]
    scale, outer_scale = spread(65536.0 / (65536.0 - a[14])), spread(65536.0 / (65536.0 - a[17]))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        end = min(positions, (part + 1) * a[18])
        z = a[6] + part * _VECTORS * (rows + columns) * _ROW
        both = z + _VECTORS * columns * _ROW
        _fill(z, inputs, columns)
        for begin in range(part * a[18], end, _CHUNK):
            for h in range(inputs):
                for v in range(_VECTORS):
                    j = begin + v * LANES
                    i = h * positions + j
                    x = load_first(a[2], i, positions - j)
                    phi, _ = normal(x)
                    store(z, (v * columns + h) * LANES, x * phi * kept(i, a[12], a[13], a[14], scale))
            _mapped(matrix, z, inputs, rows, columns, both)
            for o in range(outputs):
                for v in range(_VECTORS):
                    j, k = begin + v * LANES, v * rows + o
                    i = o * positions + j
                    y = load(both, k * LANES) * sigmoid(load(both, (k + outputs) * LANES))
                    y = load_first(a[3], i, positions - j) + y * kept(i, a[15], a[16], a[17], outer_scale)
                    store_first(a[4], i, y, positions - j)


@Kernel
def _backward(a: Any) -> None:
    """Arguments: g, x, g_x, matrix (R, C), working (parts, 8 (R + 3 C), 16), sums (parts, R, C, 16), then as _forward.

    `sums` receives the gradient of the matrix, over a part's positions; it must be zero at the start.
    """
    matrix, inputs, outputs, positions, rows, columns = a[5], a[8], a[9], a[10], a[11], a[12]
    scale, outer_scale = spread(65536.0 / (65536.0 - a[15])), spread(65536.0 / (65536.0 - a[18]))
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        end = min(positions, (part + 1) * a[19])
        z = a[6] + part * _VECTORS * (rows + 3 * columns) * _ROW
        slope = z + _VECTORS * columns * _ROW
        back = slope + _VECTORS * columns * _ROW
        both = back + _VECTORS * columns * _ROW
        sums = a[7] + part * rows * columns * _ROW
        _fill(z, inputs, columns)
        for begin in range(part * a[19], end, _CHUNK):
            for h in range(inputs):
                for v in range(_VECTORS):
                    j = begin + v * LANES
                    i, k = h * positions + j, (v * columns + h) * LANES
                    x = load_first(a[3], i, positions - j)
                    phi, bell = normal(x)
                    keep = kept(i, a[13], a[14], a[15], scale)
                    store(z, k, x * phi * keep)
                    store(slope, k, (phi + x * bell) * keep)
            _mapped(matrix, z, inputs, rows, columns, both)
            for o in range(outputs):
                for v in range(_VECTORS):
                    j, k = begin + v * LANES, (v * rows + o) * LANES
                    i, m = o * positions + j, k + outputs * LANES
                    g = load_first(a[2], i, positions - j) * kept(i, a[16], a[17], a[18], outer_scale)
                    s = sigmoid(load(both, m))
                    g = g * s
                    store(both, m, g * load(both, k) * (spread(1.0) + negate(s)))
                    store(both, k, g)
            for v in range(0, _VECTORS, COLUMNS):
                for h in range(0, inputs, ROWS):
                    signal = both + v * rows * _ROW
                    y = times_matrix(zeros(), matrix + h * _BYTES, 1, columns, signal, rows * LANES, LANES, 2 * outputs)
                    store_tile(back + (v * columns + h) * _ROW, LANES, columns * LANES, y)
            for h in range(inputs):
                for v in range(_VECTORS):
                    j, k = begin + v * LANES, (v * columns + h) * LANES
                    store_first(a[4], h * positions + j, load(back, k) * load(slope, k), positions - j)
            for r in range(0, rows, ROWS):
                for h in range(0, inputs + 1, COLUMNS):
                    there = sums + (r * columns + h) * _ROW
                    t = load_tile(there, columns * LANES, LANES)
                    t = times_signals(t, both + r * _ROW, rows * LANES, z + h * _ROW, columns * LANES, _VECTORS)
                    store_tile(there, columns * LANES, LANES, t)
