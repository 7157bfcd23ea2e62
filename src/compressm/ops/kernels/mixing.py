"""Products over channels of transforms, frequency by frequency, without transposing anything.

A transform of signals is (channels, batch, F) complex64, frequencies side by side as a Fourier transform over time
leaves them. One part is a range of 16 frequencies, whose real and imaginary parts are first set apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.kernels.launch import Kernel, inline, next_part
from compressm.ops.kernels.simd import (
    LANES,
    evens,
    load,
    load_first,
    negate,
    odds,
    spread,
    store,
    store_first,
    zip_high,
    zip_low,
)

_PAIR = 2 * LANES
_BYTES = 4
_AT_ONCE = 4  # sequences that share a load of the response


def mix(response: Tensor, signal: Tensor, *, adjoint: bool = False) -> Tensor:
    """out[o, b] = sum_i response[i, o] signal[i, b]; its adjoint out[i, b] = sum_o conj(response[i, o]) signal[o, b].

    response (H_in, H_out, F), signal (H_in or H_out, batch, F), all complex64.
    """
    (inputs, outputs, size), batch = response.shape, signal.shape[1]
    rows, columns = (inputs, outputs) if adjoint else (outputs, inputs)
    strides = (outputs, 1) if adjoint else (1, outputs)
    out = signal.new_empty(rows, batch, size)
    parts, padded = -(-size // LANES), -(-batch // _AT_ONCE) * _AT_ONCE
    apart = torch.empty(parts, columns * padded + rows * columns, _PAIR)
    sizes = rows, columns, *strides, batch, padded, size, -1 if adjoint else 1
    _mix(parts, _real(response), _real(signal), _real(out), apart, *sizes)
    return out


def correlate(first: Tensor, second: Tensor) -> Tensor:
    """out[i, o] = sum_b conj(first[i, b]) second[o, b], (H_in, H_out, F), of (H_in, batch, F) and (H_out, batch, F)."""
    (inputs, batch, size), outputs = first.shape, second.shape[0]
    out, parts = first.new_empty(inputs, outputs, size), -(-size // LANES)
    apart = torch.empty(parts, (inputs + outputs) * batch, _PAIR)
    _correlate(parts, _real(first), _real(second), _real(out), apart, inputs, outputs, batch, size)
    return out


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.contiguous())


@inline
def _set_apart(source: Any, offset: Any, count: Any, place: Any, index: Any) -> None:
    x = load_first(source, 2 * offset, 2 * count)
    y = load_first(source, 2 * offset + LANES, 2 * count - LANES)
    store(place, index * _PAIR, evens(x, y))
    store(place, index * _PAIR + LANES, odds(x, y))


@inline
def _join(re: Any, im: Any, target: Any, offset: Any, count: Any) -> None:
    store_first(target, 2 * offset, zip_low(re, im), 2 * count)
    store_first(target, 2 * offset + LANES, zip_high(re, im), 2 * count - LANES)


@inline
def _multiply(apart: Any, k: Any, p: Any, q: Any, re: Any, im: Any) -> Any:
    """re + i im plus (p + i q) times the number at k."""
    x, y = load(apart, k), load(apart, k + LANES)
    return re + p * x - q * y, im + p * y + q * x


@Kernel
def _mix(a: Any) -> None:
    """Arguments: response, signal, out, apart, rows, columns, strides of both in the response, batch, padded, size,
    and -1 for the conjugate of the response, else 1.
    """
    response, signal, out = a[2], a[3], a[4]
    rows, columns, by_row, by_column, batch, padded, size, sign = a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        f = part * LANES
        count = size - f
        apart = a[5] + part * (columns * padded + rows * columns) * _PAIR * _BYTES
        factors = apart + columns * padded * _PAIR * _BYTES
        for c in range(columns):
            for b in range(batch):
                _set_apart(signal, (c * batch + b) * size + f, count, apart, c * padded + b)
            for b in range(2 * batch, 2 * padded):
                store(apart, (2 * c * padded + b) * LANES, spread(0.0))
            for r in range(rows):
                _set_apart(response, (r * by_row + c * by_column) * size + f, count, factors, r * columns + c)
        for r in range(rows):
            for b in range(0, batch, _AT_ONCE):
                re0, re1, re2, re3 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
                im0, im1, im2, im3 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
                for c in range(columns):
                    j, k = (r * columns + c) * _PAIR, (c * padded + b) * _PAIR
                    p, q = load(factors, j), load(factors, j + LANES) * spread(sign)
                    re0, im0 = _multiply(apart, k, p, q, re0, im0)
                    re1, im1 = _multiply(apart, k + _PAIR, p, q, re1, im1)
                    re2, im2 = _multiply(apart, k + 2 * _PAIR, p, q, re2, im2)
                    re3, im3 = _multiply(apart, k + 3 * _PAIR, p, q, re3, im3)
                place = (r * batch + b) * size + f
                _join(re0, im0, out, place, count)
                if b + 1 < batch:
                    _join(re1, im1, out, place + size, count)
                if b + 2 < batch:
                    _join(re2, im2, out, place + 2 * size, count)
                if b + 3 < batch:
                    _join(re3, im3, out, place + 3 * size, count)


@Kernel
def _correlate(a: Any) -> None:
    """Arguments: first, second, out, apart, H_in, H_out, batch, size."""
    first, second, out = a[2], a[3], a[4]
    inputs, outputs, batch, size = a[6], a[7], a[8], a[9]
    while True:
        part = next_part(a)
        if part >= a[1]:
            return
        f = part * LANES
        count = size - f
        left = a[5] + part * (inputs + outputs) * batch * _PAIR * _BYTES
        right = left + inputs * batch * _PAIR * _BYTES
        for k in range(inputs * batch):
            _set_apart(first, k * size + f, count, left, k)
        for k in range(outputs * batch):
            _set_apart(second, k * size + f, count, right, k)
        for i in range(inputs):
            for o in range(0, outputs, 2):
                other = min(o + 1, outputs - 1)
                re0, re1, im0, im1 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
                for b in range(batch):
                    k = (i * batch + b) * _PAIR
                    p, q = load(left, k), negate(load(left, k + LANES))
                    re0, im0 = _multiply(right, (o * batch + b) * _PAIR, p, q, re0, im0)
                    re1, im1 = _multiply(right, (other * batch + b) * _PAIR, p, q, re1, im1)
                _join(re0, im0, out, (i * outputs + o) * size + f, count)
                if o + 1 < outputs:
                    _join(re1, im1, out, (i * outputs + o + 1) * size + f, count)
