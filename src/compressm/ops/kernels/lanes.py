"""The whole diagonal recurrence for 16 sequences at a time: drive, states and readout in one pass.

Sequences lie side by side: element (h, t, k) of a signal (channels, L, batch) is at h L batch + t batch + k. A group is
16 sequences; the last group ends with the last sequence and may share some with the one before it. What a group works
on lies in memory of its own as (..., 16), the 16 of one number together: signals of a block as (T, channels, 16),
states as (N, re or im, 16). States are taken in pairs, which share loads.
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
def _moved(pole: Any, order: Any, n: Any, state: Any) -> Any:
    """pole times state n."""
    p, q = load_spread(pole, n), load_spread(pole, order + n)
    re, im = load(state, n * _PAIR), load(state, n * _PAIR + LANES)
    return p * re - q * im, p * im + q * re


@inline
def _moved_back(pole: Any, order: Any, n: Any, state: Any) -> Any:
    """conj(pole) times state n."""
    p, q = load_spread(pole, n), load_spread(pole, order + n)
    re, im = load(state, n * _PAIR), load(state, n * _PAIR + LANES)
    return p * re + q * im, p * im - q * re


@inline
def _put(state: Any, n: Any, re: Any, im: Any) -> None:
    store(state, n * _PAIR, re)
    store(state, n * _PAIR + LANES, im)


@inline
def _step(u: Any, pole: Any, b: Any, inputs: Any, order: Any, before: Any, after: Any) -> None:
    """after = pole before + B u."""
    for n in range(0, order, 2):
        v, w = _moved(pole, order, n, before)
        r, s = _moved(pole, order, n + 1, before)
        for h in range(inputs):
            x, k = load(u, h * LANES), 2 * (n * inputs + h)
            m = k + 2 * inputs
            v, w = v + load_spread(b, k) * x, w + load_spread(b, k + 1) * x
            r, s = r + load_spread(b, m) * x, s + load_spread(b, m + 1) * x
        _put(after, n, v, w)
        _put(after, n + 1, r, s)


@inline
def _gain(weights: Any, channels: Any, n: Any, c: Any, v: Any, w: Any, r: Any, s: Any) -> Any:
    """What states n = (v, w) and n + 1 = (r, s) give to channel c: re weights re + im weights im."""
    k = 2 * (n * channels + c)
    m = k + 2 * channels
    first = load_spread(weights, k) * v + load_spread(weights, k + 1) * w
    return first + load_spread(weights, m) * r + load_spread(weights, m + 1) * s


@inline
def _feed(u: Any, d: Any, out: Any, channels: Any) -> None:
    """out = D u, or 0 without D."""
    for h in range(channels):
        store(out, h * LANES, load_spread(d, h) * load(u, h * LANES) if d != 0 else spread(0.0))


@inline
def _correct(state: Any, defect: Any, start: Any, order: Any) -> None:
    """state += defect start."""
    for n in range(order):
        v, w = _moved(defect, order, n, start)
        _put(state, n, load(state, n * _PAIR) + v, load(state, n * _PAIR + LANES) + w)


@inline
def _add_product(sums: Any, x: Any, n: Any, v: Any, w: Any) -> None:
    """sums[n] += conj(x[n]) (v + i w)."""
    k = n * _PAIR
    re, im = load(x, k), load(x, k + LANES)
    store(sums, k, load(sums, k) + re * v + im * w)
    store(sums, k + LANES, load(sums, k + LANES) + re * w - im * v)


@inline
def _adjoint(
    g: Any, out: Any, steps: Any, inputs: Any, outputs: Any, order: Any,
    pole: Any, b: Any, c: Any, d: Any, x: Any, gx: Any, ahead: Any, sums: Any,
) -> None:  # fmt: skip
    """gx[t] = c^T g[t] + conj(pole) gx[t+1] (plus `ahead` at the end), out = b^T gx + D g, sums += conj(x[t-1]) gx."""
    size = order * _PAIR * _BYTES
    for t in range(steps - 1, -1, -1):
        row, later, there = gx + t * size, gx + (t + 1) * size, out + t * inputs * _ROW
        _feed(g + t * outputs * _ROW, d, there, inputs)
        for n in range(0, order, 2):
            k = n * _PAIR
            if t == steps - 1:
                v, w = load(ahead, k), load(ahead, k + LANES)
                r, s = load(ahead, k + _PAIR), load(ahead, k + _PAIR + LANES)
            else:
                v, w = _moved_back(pole, order, n, later)
                r, s = _moved_back(pole, order, n + 1, later)
            for o in range(outputs):
                y, j = load(g, (t * outputs + o) * LANES), 2 * (n * outputs + o)
                m = j + 2 * outputs
                v, w = v + load_spread(c, j) * y, w + load_spread(c, j + 1) * y
                r, s = r + load_spread(c, m) * y, s + load_spread(c, m + 1) * y
            _put(row, n, v, w)
            _put(row, n + 1, r, s)
            _add_product(sums, x + t * size, n, v, w)
            _add_product(sums, x + t * size, n + 1, r, s)
            for h in range(inputs):
                store(there, h * LANES, load(there, h * LANES) + _gain(b, inputs, n, h, v, w, r, s))


@inline
def _carry(ahead: Any, gx: Any, pole: Any, defect: Any, order: Any) -> None:
    """ahead = conj(pole) gx[0] + conj(defect) ahead."""
    for n in range(order):
        v, w = _moved_back(pole, order, n, gx)
        r, s = _moved_back(defect, order, n, ahead)
        _put(ahead, n, v + r, w + s)


@inline
def _products(x: Any, u: Any, steps: Any, channels: Any, order: Any, sums: Any) -> None:
    """sums[n, h] += sum_t x[t, n] u[t, h], real and imaginary parts."""
    for n in range(0, order, 2):
        for h in range(channels):
            k = (n * channels + h) * _PAIR
            m = k + channels * _PAIR
            v, w, r, s = load(sums, k), load(sums, k + LANES), load(sums, m), load(sums, m + LANES)
            for t in range(steps):
                y, i = load(u, (t * channels + h) * LANES), (t * order + n) * _PAIR
                v, w = v + load(x, i) * y, w + load(x, i + LANES) * y
                r, s = r + load(x, i + _PAIR) * y, s + load(x, i + _PAIR + LANES) * y
            store(sums, k, v)
            store(sums, k + LANES, w)
            store(sums, m, r)
            store(sums, m + LANES, s)


@Kernel
def forward(a: Any) -> None:
    """y = c_0 Re x + c_1 Im x + D u; N is even.

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
            for n in range(0, order, 2):
                v, w = load(state, n * _PAIR), load(state, n * _PAIR + LANES)
                r, s = load(state, n * _PAIR + _PAIR), load(state, n * _PAIR + _PAIR + LANES)
                for o in range(outputs):
                    store(y, o * LANES, load(y, o * LANES) + _gain(c, outputs, n, o, v, w, r, s))
            for o in range(outputs):
                store(a[3] + here, o * plane, load(y, o * LANES))


@Kernel
def backward(a: Any) -> None:
    """The gradients of u, the poles, B, C and D, block by block from the last; states are computed anew, N is even.

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
