"""Impulse responses of banks of systems whose state matrices are diagonal but for a part of rank one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compressm.ops.bank_response import two_level_powers
from compressm.ops.checks import check_low_rank_bank
from compressm.ops.convolution import good_size
from compressm.ops.derivative import written_out
from compressm.ops.precision import complex_dtype, nothing

_LANES = 8  # the short side of the complex matrix product is a multiple of a vector register
_START = 32  # terms of a reciprocal that come from a triangular system
_PER_STEP = 1600  # multiplications of squarings in the time of one time step of the series, on two CPUs


def squarings_are_faster(order: int, length: int) -> bool:
    """Whether a kernel is had sooner from powers of the dense N x N matrices (`dense_bank_response`), in float32."""
    return order**3 * length.bit_length() <= _PER_STEP * length


def low_rank_response(nu: Tensor, theta: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """K[h, l] = Re(c (diag(lambda) - p q^T)^l b) for l < length, (H, length), with lambda = exp(-nu + i theta).

    Shapes: nu, theta (H, N) real; p, q, b, c (H, N) complex (or real), which decide the precision.

    With k_xy(z) = sum_l z^l sum_n x_n lambda_n^l y_n the Woodbury identity gives
    K(z) = k_cb - z k_cp k_qb / (1 + z k_qp) (arXiv 2111.00396, appendix C.3). There it is taken at roots of unity, with
    the L-th power of the state matrix; here modulo z^L, as power series: exact, and without any power of the matrix.
    The four diagonal responses are matrix products of two-level powers, the quotient is Newton's iteration by FFT
    (Sieveking 1972; Kung 1974). For each channel that is O(N L + L log L). Where p and q are large, the terms of K are
    far larger than their sum: give complex128.

    Raises InvalidSystemError where shapes do not fit together.
    """
    check_low_rank_bank(nu, theta, p, q, b, c, length)
    if nu.numel() == 0 or length == 0:
        return nothing(nu, theta, p, q, b, c, shape=(len(b), length))
    left, right = torch.stack([c, q], 1), torch.stack([b, p], 1)
    dtype = complex_dtype(torch.promote_types(left.dtype, right.dtype))
    kernel: Tensor = _LowRankResponse.apply(nu, theta, left.to(dtype), right.to(dtype), length)
    return kernel


class _LowRankResponse(torch.autograd.Function):
    """From left (H, 2, N), the rows c and q, and right (H, 2, N), the columns b and p.

    Written out because the graph of the powers would cost more than the matrix products. With G the gradient of a
    product P = p^k X of a power and a weight, the gradient of log p is sum_k k conj(P_k) G_k. The adjoint of a
    convolution of series is a correlation. The backward pass works on the conjugates of gradients, so that what was
    saved needs none.
    """

    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, left: Tensor, right: Tensor, length: int) -> Tensor:
        channels = len(left)
        root = math.isqrt(max(length - 1, 0)) + 1
        fine = max(1, min(length, -(-root // _LANES) * _LANES))
        coarse = -(-length // fine)
        powers = two_level_powers(nu, theta, fine, coarse, left.real.dtype)
        along, across = (power[:, None] for power in powers)  # (H, 1, T, N), (H, 1, Q, N)
        rows, columns = left[:, :, None] * across, right[:, :, None] * along
        product = torch.bmm(rows.flatten(1, 2), columns.flatten(1, 2).mT).view(channels, 2, coarse, 2, fine)
        responses = product.transpose(2, 3).reshape(channels, 2, 2, coarse * fine)  # [[k_cb, k_cp], [k_qb, k_qp]]
        ctx.size = good_size(2 * length - 1)
        out, back = (torch.fft.fft(responses[:, i, 1 - i, :length], n=ctx.size) for i in (0, 1))
        loop = torch.nn.functional.pad(responses[:, 1, 1, : length - 1], (1, 0))
        loop[:, 0] = 1
        share = torch.fft.fft(_reciprocal(loop), n=ctx.size)
        inner = torch.fft.fft(torch.fft.ifft(back.mul_(share))[:, :length], n=ctx.size)
        kernel = responses[:, 0, 0, :length].real.clone()
        kernel[:, 1:] -= torch.fft.ifft(out * inner)[:, : length - 1].real
        ctx.save_for_backward(rows, columns, along, across, left, torch.stack([inner, out], 1), share)
        ctx.dtypes = nu.dtype, theta.dtype
        return kernel

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, columns, along, across, left, ends, share = ctx.saved_tensors
        (channels, length), coarse, fine = grad.shape, across.shape[2], along.shape[2]

        def correlate(transform: Tensor, conjugate: Tensor) -> Tensor:
            """The conjugate of the correlation with a series, from its transform and the conjugate of the other's."""
            return torch.fft.fft(transform * conjugate, norm="forward")[..., :length]

        def conjugate_transform(conjugate: Tensor) -> Tensor:
            return torch.fft.ifft(conjugate, n=ctx.size, norm="forward")

        found = rows.new_zeros(channels, 2, 2, coarse * fine)
        found[:, 0, 0, :length] = grad
        found[:, 0, 1, :length], driven = correlate(ends, conjugate_transform(grad[:, 1:].neg())[:, None]).unbind(1)
        back = correlate(share, conjugate_transform(driven))
        found[:, 1, 0, :length] = back
        found[:, 1, 1, : length - 1] = correlate(ends[:, 0], conjugate_transform(back.neg()))[:, 1:]
        found = found.view(channels, 2, 2, coarse, fine).transpose(2, 3).reshape(channels, 2 * coarse, 2 * fine)

        by_row = torch.bmm(found, columns.flatten(1, 2)).view(rows.shape).mul_(across)
        by_column = torch.bmm(found.mT, rows.flatten(1, 2)).view(columns.shape)
        steps = torch.arange(fine, device=grad.device, dtype=grad.dtype)[:, None]
        strides = torch.arange(coarse, device=grad.device, dtype=grad.dtype)[:, None] * fine
        grad_log = ((by_row * strides).sum(2) * left).sum(1) + (by_column * columns * steps).sum((1, 2))
        nu_type, theta_type = ctx.dtypes
        grad_right = by_column.mul_(along).sum(2).conj()
        return -grad_log.real.to(nu_type), -grad_log.imag.to(theta_type), by_row.sum(2).conj(), grad_right, None


def _reciprocal(series: Tensor) -> Tensor:
    """1 / f modulo z^L for a series f (H, L) with f_0 = 1: Newton's g <- g (2 - f g), which doubles the known terms.

    The first terms are a triangular Toeplitz system.
    """
    length = series.shape[-1]
    start = min(_START, length)
    rows = torch.nn.functional.pad(series[:, :start], (start - 1, 0)).unfold(1, start, 1).flip(2)
    unit = series.new_zeros(len(series), start, 1)
    unit[:, 0] = 1
    known = torch.linalg.solve_triangular(rows, unit, upper=False, unitriangular=True).squeeze(-1)
    while (half := known.shape[-1]) < length:
        whole = 2 * half  # the terms that wrap around at this size are known already
        transform = torch.fft.fft(known, n=whole)
        residual = torch.fft.ifft(torch.fft.fft(series[..., :whole], n=whole) * transform)[..., half:]
        further = torch.fft.ifft(torch.fft.fft(residual, n=whole) * transform)[..., :half]
        known = torch.cat([known, further.neg_()], dim=-1)
    return known[..., :length]
