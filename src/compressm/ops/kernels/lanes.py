"""The whole diagonal recurrence for 16 sequences at a time: drive, states and readout in one pass.

Sequences lie side by side: element (h, t, k) of a signal (channels, L, batch) is at h L batch + t batch + k. A group is
16 sequences; the last group ends with the last sequence and may share some with the one before it. What a group works
on lies in memory of its own as (..., 16), the 16 of one number together: signals of a block as (T, channels, 16),
states as (N, re or im, 16).
"""

from __future__ import annotations

from typing import Any

from compressm.ops.kernels.launch import Kernel, inline, next_part
from compressm.ops.kernels.simd import LANES, load, load_spread, spread, store

_BYTES = 4
_ROW = LANES * _BYTES
_PAIR = 2 * LANES  # one state


@inline
def _gather(signal: Any, block: Any, plane: Any, batch: Any, steps: Any, channels: Any) -> None:
    for h in range(channels):
        for t in range(steps):
            store(block, (t * channels + h) * LANES, load(signal, h * plane + t * batch))


@inline
def _step(u: Any, pole: Any, b: Any, inputs: Any, order: Any, before: Any, after: Any) -> None:
    """after = pole before + B u."""
    for n in range(order):
        p, q = load_spread(pole, n), load_spread(pole, order + n)
        re, im = load(before, n * _PAIR), load(before, n * _PAIR + LANES)
        v, w = p * re - q * im, p * im + q * re
        for h in range(inputs):
            x, k = load(u, h * LANES), 2 * (n * inputs + h)
            v, w = v + load_spread(b, k) * x, w + load_spread(b, k + 1) * x
        store(after, n * _PAIR, v)
        store(after, n * _PAIR + LANES, w)


@inline
def _feed(u: Any, d: Any, out: Any, channels: Any) -> None:
    """out = D u, or 0 without D."""
    for h in range(channels):
        store(out, h * LANES, load_spread(d, h) * load(u, h * LANES) if d != 0 else spread(0.0))


@inline
def _correct(state: Any, defect: Any, start: Any, order: Any) -> None:
    """state += defect start."""
    for n in range(order):
        p, q = load_spread(defect, n), load_spread(defect, order + n)
        re, im = load(start, n * _PAIR), load(start, n * _PAIR + LANES)
        store(state, n * _PAIR, load(state, n * _PAIR) + p * re - q * im)
        store(state, n * _PAIR + LANES, load(state, n * _PAIR + LANES) + p * im + q * re)


@inline
def _adjoint(
    g: Any, out: Any, steps: Any, inputs: Any, outputs: Any, order: Any,
    pole: Any, b: Any, c: Any, d: Any, x: Any, gx: Any, ahead: Any, sums: Any,
) -> None:  # fmt: skip
    """gx[t] = C^T g[t] + conj(pole) gx[t+1] (plus `ahead` at the end), out = B^T gx + D g, sums += conj(x[t-1]) gx."""
    size = order * _PAIR * _BYTES
    for t in range(steps - 1, -1, -1):
        row, later, there = gx + t * size, gx + (t + 1) * size, out + t * inputs * _ROW
        _feed(g + t * outputs * _ROW, d, there, inputs)
        for n in range(order):
            k = n * _PAIR
            if t == steps - 1:
                v, w = load(ahead, k), load(ahead, k + LANES)
            else:
                p, q = load_spread(pole, n), load_spread(pole, order + n)
                re, im = load(later, k), load(later, k + LANES)
                v, w = p * re + q * im, p * im - q * re
            for o in range(outputs):
                y, j = load(g, (t * outputs + o) * LANES), 2 * (n * outputs + o)
                v, w = v + load_spread(c, j) * y, w - load_spread(c, j + 1) * y
            store(row, k, v)
            store(row, k + LANES, w)
            re, im = load(x + t * size, k), load(x + t * size, k + LANES)
            store(sums, k, load(sums, k) + re * v + im * w)
            store(sums, k + LANES, load(sums, k + LANES) + re * w - im * v)
            for h in range(inputs):
                j = 2 * (n * inputs + h)
                store(there, h * LANES, load(there, h * LANES) + load_spread(b, j) * v + load_spread(b, j + 1) * w)


@inline
def _carry(ahead: Any, gx: Any, pole: Any, defect: Any, order: Any) -> None:
    """ahead = conj(pole) gx[0] + conj(defect) ahead."""
    for n in range(order):
        k, m = n * _PAIR, order + n
        p, q, e, f = load_spread(pole, n), load_spread(pole, m), load_spread(defect, n), load_spread(defect, m)
        re, im, v, w = load(gx, k), load(gx, k + LANES), load(ahead, k), load(ahead, k + LANES)
        store(ahead, k, p * re + q * im + e * v + f * w)
        store(ahead, k + LANES, p * im - q * re + e * w - f * v)


@inline
def _products(x: Any, u: Any, steps: Any, channels: Any, order: Any, sums: Any) -> None:
    """sums[n, h] += sum_t x[t, n] u[t, h], real and imaginary parts."""
    for n in range(order):
        for h in range(channels):
            k = (n * channels + h) * _PAIR
            v, w = load(sums, k), load(sums, k + LANES)
            for t in range(steps):
                y, i = load(u, (t * channels + h) * LANES), (t * order + n) * _PAIR
                v, w = v + load(x, i) * y, w + load(x, i + LANES) * y
            store(sums, k, v)
            store(sums, k + LANES, w)


@Kernel
def forward(a: Any) -> None:
    """y = Re(C x) + D u.

    Arguments: u (H, L, batch), y (O, L, batch), starts (groups, blocks, N, 2, 16), state (groups, N, 2, 16), signal
    (groups, H + O, 16), pole, defect (2 N), b (N, H, 2), c (N, O, 2), d (O) or 0, then L, H, O, N, batch, T. `starts`
    receives the states before each block of T steps; `state` and `signal` are working memory.
    """
    pole, defect, b, c, d = a[7], a[8], a[9], a[10], a[11]
    length, inputs, outputs, order, batch, block = a[12], a[13], a[14], a[15], a[16], a[17]
    plane, size = length * batch, order * _PAIR * _BYTES
    blocks = (length + block - 1) // block
    while True:
        group = next_part(a)
        if group >= a[1]:
            return
        first = min(group * LANES, batch - LANES)
        state, u = a[5] + group * size, a[6] + group * (inputs + outputs) * _ROW
        y = u + inputs * _ROW
        for n in range(2 * order):
            store(state, n * LANES, spread(0.0))
        for t in range(length):
            if t % block == 0:
                start = a[4] + (group * blocks + t // block) * size
                if t > 0:
                    _correct(state, defect, start - size, order)
                for n in range(2 * order):
                    store(start, n * LANES, load(state, n * LANES))
            here = (t * batch + first) * _BYTES
            _gather(a[2] + here, u, plane, batch, 1, inputs)
            _step(u, pole, b, inputs, order, state, state)
            _feed(u, d, y, outputs)
            for n in range(order):
                re, im = load(state, n * _PAIR), load(state, n * _PAIR + LANES)
                for o in range(outputs):
                    k = 2 * (n * outputs + o)
                    store(y, o * LANES, load(y, o * LANES) + load_spread(c, k) * re - load_spread(c, k + 1) * im)
            for o in range(outputs):
                store(a[3] + here, o * plane, load(y, o * LANES))


@Kernel
def backward(a: Any) -> None:
    """The gradients of u, the poles, B, C and D, block by block from the last, with the block's states computed anew.

    Arguments: u, g (O, L, batch), g_u (H, L, batch), starts (groups, blocks, N, 2, 16), x (groups, T + 1, N, 2, 16),
    gx (groups, T, N, 2, 16), signal (groups, T, 2 H + O, 16), ahead, sums (groups, N, 2, 16), sum_b
    (groups, N, H, 2, 16), sum_c (groups, N, O, 2, 16), sum_d (groups, O, 16), pole, defect (2 N), b (N, H, 2),
    c (N, O, 2), d (O) or 0, then L, H, O, N, batch, T. The sums and `ahead` must be zero at the start; a group's sums
    are over its steps, not over its sequences.
    """
    pole, defect, b, c, d = a[14], a[15], a[16], a[17], a[18]
    length, inputs, outputs, order, batch, block = a[19], a[20], a[21], a[22], a[23], a[24]
    plane, size = length * batch, order * _PAIR * _BYTES
    blocks = (length + block - 1) // block
    while True:
        group = next_part(a)
        if group >= a[1]:
            return
        first = min(group * LANES, batch - LANES)
        x, gx = a[6] + group * (block + 1) * size, a[7] + group * block * size
        u = a[8] + group * block * (2 * inputs + outputs) * _ROW
        out = u + block * inputs * _ROW
        g = out + block * inputs * _ROW
        ahead, sums = a[9] + group * size, a[10] + group * size
        sum_b, sum_c = a[11] + group * size * inputs, a[12] + group * size * outputs
        sum_d = a[13] + group * outputs * _ROW
        for index in range(blocks - 1, -1, -1):
            begin = index * block
            steps = min(block, length - begin)
            here = (begin * batch + first) * _BYTES
            start = a[5] + (group * blocks + index) * size
            _gather(a[2] + here, u, plane, batch, steps, inputs)
            _gather(a[3] + here, g, plane, batch, steps, outputs)
            for n in range(2 * order):
                store(x, n * LANES, load(start, n * LANES))
            for t in range(steps):
                _step(u + t * inputs * _ROW, pole, b, inputs, order, x + t * size, x + (t + 1) * size)
            _adjoint(g, out, steps, inputs, outputs, order, pole, b, c, d, x, gx, ahead, sums)
            _carry(ahead, gx, pole, defect, order)
            _products(gx, u, steps, inputs, order, sum_b)
            _products(x + size, g, steps, outputs, order, sum_c)
            for h in range(inputs):
                for t in range(steps):
                    store(a[4] + here, h * plane + t * batch, load(out, (t * inputs + h) * LANES))
                    if d != 0:
                        k = (t * inputs + h) * LANES
                        store(sum_d, h * LANES, load(sum_d, h * LANES) + load(u, k) * load(g, k))
