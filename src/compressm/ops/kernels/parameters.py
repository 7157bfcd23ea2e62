"""The parameters of a diagonal system as the kernels of `lanes` want them, and their gradients from its sums.

Both are small; what they save is the calls that torch would need for them, which take longer than their work.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from compressm.ops.kernels.launch import Kernel, doubles_at, floats_at, inline
from compressm.ops.kernels.simd import LANES, first_of, load, spread, total
from compressm.ops.kernels.tiles import padded

_BYTES = 4


def packed(nu: Tensor, theta: Tensor, matrices: tuple[Tensor, ...], block: int) -> tuple[Tensor, ...]:
    """(poles, exact, b, c) for nu, theta (N,) in float64 and B_re, B_im (N, H), C_re, C_im (O, N).

    poles (2, 2 N') has the poles exp(-nu + i theta) rounded to single precision, as [re | im], and what rounding loses
    over `block` steps; `exact` (N, 2) the poles in double precision. b (N', 2, H') and c (N', 2, O') are for real
    products: c has -C_im. N' is N rounded up to an even number, H' and O' are multiples of 4; spare numbers are zero.
    """
    order, inputs = matrices[0].shape
    outputs, even = matrices[2].shape[0], order + order % 2
    width, high = padded(inputs), padded(outputs)
    b, c = matrices[0].new_empty(even, 2, width), matrices[0].new_empty(even, 2, high)
    poles, exact = b.new_empty(2, 2 * even), nu.new_empty(order, 2)
    given = nu.contiguous(), theta.contiguous(), *(m.contiguous() for m in matrices)
    _pack(1, *given, poles, exact, b, c, order, inputs, outputs, even, width, high, block)
    return poles, exact, b, c


def gradients(sums: Tensor, exact: Tensor, shared: int, inputs: int, outputs: int) -> tuple[Tensor, ...]:
    """Those of nu, theta, B_re, B_im, C_re, C_im and D for the sums (groups, K, 16) of `lanes.backward`.

    Of the last group the first `shared` sequences count for nothing.
    """
    order = exact.shape[0]
    by_pole = exact.new_empty(2, order)
    by_b, by_c, by_d = sums.new_empty(2, order, inputs), sums.new_empty(2, outputs, order), sums.new_empty(outputs)
    even, width, high = order + order % 2, padded(inputs), padded(outputs)
    sizes = sums.shape[0], sums.shape[1], shared, order, inputs, outputs, even, width, high
    _unpack(1, sums, exact, by_pole, by_b, by_c, by_d, *sizes)
    return *by_pole, *by_b, *by_c, by_d


@inline
def _power(re: Any, im: Any, count: Any) -> Any:
    """(re + i im)^count by squaring."""
    p, q = 1.0, 0.0
    while count > 0:
        if count % 2 == 1:
            p, q = p * re - q * im, p * im + q * re
        re, im = re * re - im * im, 2.0 * re * im
        count //= 2
    return p, q


@inline
def _put(
    rows: Any, columns: Any, rows_out: Any, columns_out: Any, x: Any, step: Any, stride: Any, sign: Any, y: Any
) -> None:
    """y[n, 0, k] = sign x[n step + k stride] within (rows, columns), zero beyond up to (rows_out, columns_out)."""
    for n in range(rows_out):
        for k in range(columns_out):
            inside = n < rows and k < columns
            y[2 * n * columns_out + k] = sign * x[n * step + k * stride] if inside else 0.0


@Kernel
def _pack(a: Any) -> None:
    """Arguments: nu, theta, B_re, B_im, C_re, C_im, poles, exact, b, c, N, H, O, N', H', O', T. As one part."""
    nu, theta, poles, exact = doubles_at(a[2]), doubles_at(a[3]), floats_at(a[8]), doubles_at(a[9])
    order, inputs, outputs, even, width, high = a[12], a[13], a[14], a[15], a[16], a[17]
    for k in range(4 * even):
        poles[k] = 0.0
    for n in range(order):
        size = math.exp(-nu[n])
        re, im = size * math.cos(theta[n]), size * math.sin(theta[n])
        exact[2 * n], exact[2 * n + 1] = re, im
        poles[n], poles[even + n] = re, im
        p, q = _power(re, im, a[18])
        r, s = _power(float(poles[n]), float(poles[even + n]), a[18])
        poles[2 * even + n], poles[3 * even + n] = p - r, q - s
    _put(order, inputs, even, width, floats_at(a[4]), inputs, 1, 1.0, floats_at(a[10]))
    _put(order, inputs, even, width, floats_at(a[5]), inputs, 1, 1.0, floats_at(a[10] + width * _BYTES))
    _put(order, outputs, even, high, floats_at(a[6]), 1, order, 1.0, floats_at(a[11]))
    _put(order, outputs, even, high, floats_at(a[7]), 1, order, -1.0, floats_at(a[11] + high * _BYTES))


@inline
def _sum(sums: Any, k: Any, groups: Any, rows: Any, shared: Any) -> Any:
    """Sum k over the groups' own sequences."""
    s = spread(0.0)
    for group in range(groups):
        s = s + load(sums, (group * rows + k) * LANES)
    return total(s) - total(first_of(load(sums, ((groups - 1) * rows + k) * LANES), shared))


@Kernel
def _unpack(a: Any) -> None:
    """Arguments: sums, exact, by_pole (2, N), by_b (2, N, H), by_c (2, O, N), by_d, groups, K, shared, then N to O'.

    As one part. With s = sum conj(x[t - 1]) g[t], nu's gradient is -Re(conj(pole) s) and theta's is Im(conj(pole) s).
    """
    sums, exact, by_pole = a[2], doubles_at(a[3]), doubles_at(a[4])
    by_b, by_c, by_d = floats_at(a[5]), floats_at(a[6]), floats_at(a[7])
    groups, rows, shared, order, inputs, outputs = a[8], a[9], a[10], a[11], a[12], a[13]
    even, width, high = a[14], a[15], a[16]
    start_c = 2 * even * (1 + width)
    for n in range(order):
        s, r = _sum(sums, 2 * n, groups, rows, shared), _sum(sums, 2 * n + 1, groups, rows, shared)
        re, im = exact[2 * n], exact[2 * n + 1]
        by_pole[n], by_pole[order + n] = -(re * s + im * r), re * r - im * s
        for part in range(2):
            row = 2 * n + part
            for h in range(inputs):
                k = 2 * even + row * width + h
                by_b[(part * order + n) * inputs + h] = _sum(sums, k, groups, rows, shared)
            for o in range(outputs):
                z = _sum(sums, start_c + row * high + o, groups, rows, shared)
                by_c[(part * outputs + o) * order + n] = z if part == 0 else -z
    for o in range(outputs):
        by_d[o] = _sum(sums, start_c + 2 * even * high + o, groups, rows, shared)
