"""The whole diagonal recurrence for 16 sequences at a time: drive, states and readout in one pass.

Sequences lie side by side: element (h, t, k) of a signal (channels, L, batch) is at h L batch + t batch + k. A group is
16 sequences; the last group ends with the last sequence and may share some with the one before it. A group goes through
time in blocks of T steps, T even, on memory of its own as (..., 16), the 16 of one number together: signals of a block
as (T, channels, 16), states as (T, N, re or im, 16). Channels there are a multiple of 4, the spare ones zero. A last
block of an odd number of steps has one step more, whose signals are zero.
"""

from __future__ import annotations

from typing import Any

from compressm.ops.kernels.launch import Kernel, inline, next_part
from compressm.ops.kernels.simd import LANES, load, load_spread, negate, spread, store
from compressm.ops.kernels.tiles import (
    COLUMNS,
    ROWS,
    element,
    load_tile,
    store_tile,
    times_matrix,
    times_signals,
    zeros,
)

_BYTES = 4
_ROW = LANES * _BYTES
_PAIR = 2 * LANES  # one state


@inline
def _gather(signal: Any, block: Any, width: Any, plane: Any, batch: Any, steps: Any, channels: Any) -> None:
    """A block (T, width, 16) of a signal, with a step of zeros after an odd number of steps."""
    for h in range(channels):
        for t in range(steps):
            store(block, (t * width + h) * LANES, load(signal, h * plane + t * batch))
        if steps % COLUMNS != 0:
            store(block, (steps * width + h) * LANES, spread(0.0))


@inline
def _copy(x: Any, y: Any, vectors: Any) -> None:
    for k in range(vectors):
        store(y, k * LANES, load(x, k * LANES))


@inline
def _load_pair(x: Any, n: Any) -> Any:
    """States n and n + 1: re, im, re, im."""
    k = n * _PAIR
    return load(x, k), load(x, k + LANES), load(x, k + _PAIR), load(x, k + _PAIR + LANES)


@inline
def _store_pair(x: Any, n: Any, y: Any) -> None:
    k = n * _PAIR
    store(x, k, y[0])
    store(x, k + LANES, y[1])
    store(x, k + _PAIR, y[2])
    store(x, k + _PAIR + LANES, y[3])


@inline
def _load_poles(pole: Any, order: Any, n: Any) -> Any:
    """Poles n and n + 1, each number 16 times."""
    m = order + n
    return load_spread(pole, n), load_spread(pole, m), load_spread(pole, n + 1), load_spread(pole, m + 1)


@inline
def _conjugate(p: Any) -> Any:
    return p[0], negate(p[1]), p[2], negate(p[3])


@inline
def _turned(p: Any, x: Any) -> Any:
    """The products of two poles and two states."""
    return p[0] * x[0] - p[1] * x[1], p[0] * x[1] + p[1] * x[0], p[2] * x[2] - p[3] * x[3], p[2] * x[3] + p[3] * x[2]


@inline
def _plus(x: Any, y: Any) -> Any:
    return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3]


@inline
def _plus_conj_product(sums: Any, x: Any, g: Any) -> Any:
    """sums + conj(x) g for two states."""
    return (
        sums[0] + x[0] * g[0] + x[1] * g[1],
        sums[1] + x[0] * g[1] - x[1] * g[0],
        sums[2] + x[2] * g[2] + x[3] * g[3],
        sums[3] + x[2] * g[3] - x[3] * g[2],
    )


@inline
def _earlier(t: Any) -> Any:
    """What a tile has for the first of its two steps."""
    return element(t, 0, 0), element(t, 1, 0), element(t, 2, 0), element(t, 3, 0)


@inline
def _later(t: Any) -> Any:
    return element(t, 0, 1), element(t, 1, 1), element(t, 2, 1), element(t, 3, 1)


@inline
def _advance(u: Any, steps: Any, inputs: Any, width: Any, order: Any, pole: Any, b: Any, x: Any) -> None:
    """x[t + 1] = pole x[t] + B u[t] from x[0] on."""
    size = order * _PAIR * _BYTES
    for n in range(0, order, 2):
        poles, state, rows = _load_poles(pole, order, n), _load_pair(x, n), b + 2 * n * width * _BYTES
        for t in range(0, steps, COLUMNS):
            signal = u + t * width * _ROW
            drive = times_matrix(zeros(), rows, width, 1, signal, width * LANES, LANES, inputs)
            state = _plus(_turned(poles, state), _earlier(drive))
            _store_pair(x + (t + 1) * size, n, state)
            state = _plus(_turned(poles, state), _later(drive))
            _store_pair(x + (t + 2) * size, n, state)


@inline
def _joint(x: Any, weights: Any, width: Any, order: Any, steps: Any, out: Any) -> None:
    """out[t] = weights^T x[t] over all components of the states."""
    for t in range(0, steps, COLUMNS):
        for h in range(0, width, ROWS):
            columns, states = weights + h * _BYTES, x + t * order * _PAIR * _BYTES
            y = times_matrix(zeros(), columns, 1, width, states, order * _PAIR, LANES, 2 * order)
            store_tile(out + (t * width + h) * _ROW, LANES, width * LANES, y)


@inline
def _retreat(
    g: Any, steps: Any, outputs: Any, width: Any, order: Any,
    pole: Any, defect: Any, c: Any, x: Any, gx: Any, ahead: Any, sums: Any,
) -> None:  # fmt: skip
    """gx[t] = c^T g[t] + conj(pole) gx[t + 1], `ahead` at the end and renewed; sums += conj(x[t - 1]) gx[t]."""
    size = order * _PAIR * _BYTES
    for n in range(0, order, 2):
        poles, rows = _conjugate(_load_poles(pole, order, n)), c + 2 * n * width * _BYTES
        last = _load_pair(ahead, n)
        state, products = last, _load_pair(sums, n)
        for k in range(COLUMNS, steps + COLUMNS, COLUMNS):
            t = steps - k
            signal = g + t * width * _ROW
            drive = times_matrix(zeros(), rows, width, 1, signal, width * LANES, LANES, outputs)
            state = _plus(state, _later(drive))
            _store_pair(gx + (t + 1) * size, n, state)
            products = _plus_conj_product(products, _load_pair(x + (t + 1) * size, n), state)
            state = _plus(_turned(poles, state), _earlier(drive))
            _store_pair(gx + t * size, n, state)
            products = _plus_conj_product(products, _load_pair(x + t * size, n), state)
            state = _turned(poles, state)
        _store_pair(sums, n, products)
        _store_pair(ahead, n, _plus(state, _turned(_conjugate(_load_poles(defect, order, n)), last)))


@inline
def _products(x: Any, u: Any, steps: Any, width: Any, order: Any, sums: Any) -> None:
    """sums[n, h] += sum_t x[t, n] u[t, h], real and imaginary parts."""
    for n in range(0, 2 * order, ROWS):
        for h in range(0, width, COLUMNS):
            there = sums + (n * width + h) * _ROW
            total = load_tile(there, width * LANES, LANES)
            total = times_signals(total, x + n * _ROW, order * _PAIR, u + h * _ROW, width * LANES, steps)
            store_tile(there, width * LANES, LANES, total)


@Kernel
def forward(a: Any) -> None:
    """y = c_0 Re x + c_1 Im x + D u; N is even, H' and O' are H and O rounded up to multiples of 4.

    Arguments: u (H, L, batch), y (O, L, batch), starts (groups, blocks, N, 2, 16), x (groups, T + 1, N, 2, 16), signal
    (groups, T, H' + O', 16), pole, defect (2 N), b (N, 2, H'), c (N, 2, O'), d (O) or 0, then L, H, O, N, batch, T, H',
    O'. `starts` receives the states before each block of T steps; `x` and `signal` are working memory, `signal` zero at
    the start.
    """
    pole, defect, b, c, d = a[7], a[8], a[9], a[10], a[11]
    length, inputs, outputs, order, batch, block, width, high = a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19]
    plane, size = length * batch, order * _PAIR * _BYTES
    blocks = (length + block - 1) // block
    while True:
        group = next_part(a)
        if group >= a[1]:
            return
        first = min(group * LANES, batch - LANES)
        x, u = a[5] + group * (block + 1) * size, a[6] + group * block * (width + high) * _ROW
        y = u + block * width * _ROW
        for n in range(2 * order):
            store(x, n * LANES, spread(0.0))
        for index in range(blocks):
            begin = index * block
            steps = min(block, length - begin)
            even = steps + steps % COLUMNS
            here = (begin * batch + first) * _BYTES
            _copy(x, a[4] + (group * blocks + index) * size, 2 * order)
            _gather(a[2] + here, u, width, plane, batch, steps, inputs)
            _advance(u, even, inputs, width, order, pole, b, x)
            _joint(x + size, c, high, order, even, y)
            for o in range(outputs):
                for t in range(steps):
                    z = load(y, (t * high + o) * LANES)
                    if d != 0:
                        z = z + load_spread(d, o) * load(u, (t * width + o) * LANES)
                    store(a[3] + here, o * plane + t * batch, z)
            for n in range(0, order, 2):
                lost = _turned(_load_poles(defect, order, n), _load_pair(x, n))
                _store_pair(x, n, _plus(_load_pair(x + block * size, n), lost))


@Kernel
def backward(a: Any) -> None:
    """The gradients of u, the poles, B, C and D, block by block from the last; states are computed anew, N is even.

    Arguments: u, g (O, L, batch), g_u (H, L, batch), starts (groups, blocks, N, 2, 16), x (groups, T + 1, N, 2, 16),
    gx (groups, T, N, 2, 16), signal (groups, T, 2 H' + O', 16), ahead (groups, N, 2, 16), sums (groups, K, 16), pole,
    defect (2 N), b (N, 2, H'), c (N, 2, O'), d (O) or 0, then L, H, O, N, batch, T, H', O'. The K = 2 N (1 + H' + O') +
    O sums of a group over its steps are those of the poles (N, 2), B (N, 2, H'), C (N, 2, O') and D. `sums`, `signal`
    and `ahead` must be zero at the start.
    """
    pole, defect, b, c, d = a[11], a[12], a[13], a[14], a[15]
    length, inputs, outputs, order, batch, block, width, high = a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23]
    plane, size = length * batch, order * _PAIR * _BYTES
    blocks = (length + block - 1) // block
    while True:
        group = next_part(a)
        if group >= a[1]:
            return
        first = min(group * LANES, batch - LANES)
        x, gx = a[6] + group * (block + 1) * size, a[7] + group * block * size
        u = a[8] + group * block * (2 * width + high) * _ROW
        out = u + block * width * _ROW
        g = out + block * width * _ROW
        ahead = a[9] + group * size
        sums = a[10] + group * (size * (1 + width + high) + outputs * _ROW)
        sum_b = sums + size
        sum_c = sum_b + size * width
        sum_d = sum_c + size * high
        for index in range(blocks - 1, -1, -1):
            begin = index * block
            steps = min(block, length - begin)
            even = steps + steps % COLUMNS
            here = (begin * batch + first) * _BYTES
            _gather(a[2] + here, u, width, plane, batch, steps, inputs)
            _gather(a[3] + here, g, high, plane, batch, steps, outputs)
            _copy(a[5] + (group * blocks + index) * size, x, 2 * order)
            _advance(u, even, inputs, width, order, pole, b, x)
            _retreat(g, even, outputs, high, order, pole, defect, c, x, gx, ahead, sums)
            _joint(gx, b, width, order, even, out)
            _products(gx, u, even, width, order, sum_b)
            _products(x + size, g, even, high, order, sum_c)
            for h in range(inputs):
                total, feed = spread(0.0), spread(0.0)
                if d != 0:
                    total, feed = load(sum_d, h * LANES), load_spread(d, h)
                for t in range(steps):
                    z = load(out, (t * width + h) * LANES)
                    if d != 0:
                        arriving = load(g, (t * high + h) * LANES)
                        z, total = z + feed * arriving, total + load(u, (t * width + h) * LANES) * arriving
                    store(a[4] + here, h * plane + t * batch, z)
                if d != 0:
                    store(sum_d, h * LANES, total)
