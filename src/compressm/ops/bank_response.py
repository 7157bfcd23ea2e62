"""Impulse responses of banks of single-input single-output systems, by two-level powers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.precision import complex_dtype, nothing, precise
from compressm.ops.writing import write

# Powers below exp(-cutoff) count as zero: far below rounding, and the product of two of them is not yet subnormal.
_CUTOFF = {torch.float32: 40.0, torch.float64: 350.0}
_LANES = 16  # the short side of the matrix product is a multiple of a vector register


def bank_response(nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, length: int) -> Tensor:
    """K[h, l] = Re(sum_n w[h, n] lambda[h, n]^l) for l < length, (H, length), with lambda = exp(-nu + i theta).

    With l = q T + r and T about sqrt(length) the powers split, and K is for each channel a real matrix product of
    (w lambda^{qT}) with (lambda^r): no array of the size length * N is ever formed.
    """
    if nu.numel() == 0 or length == 0:
        return nothing(nu, theta, w_re, w_im, shape=(nu.shape[0], length))
    kernel: Tensor = _BankResponse.apply(nu, theta, w_re, w_im, length)
    return kernel


def doubled_powers(nu: Tensor, theta: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """exp((-nu + i theta) k) for k < count, (H, count, N) complex.

    By doubling, from powers that are exact in float64 at each level: one rounding a level, and no more than
    N log2(count) exponentials.
    """
    nu, theta = precise(nu).clamp(max=2 * _CUTOFF[dtype]), precise(theta)
    result = torch.empty(nu.shape[0], count, nu.shape[1], dtype=complex_dtype(dtype), device=nu.device)
    result[:, 0] = 1
    filled = 1
    while filled < count:
        decay = nu * filled
        radius = torch.exp(-decay).masked_fill_(decay > _CUTOFF[dtype], 0.0)
        power = torch.polar(radius, theta * filled).to(result.dtype)
        after = result[:, filled : 2 * filled]
        write(after, torch.mul, result[:, : after.shape[1]], power[:, None])
        filled += after.shape[1]
    return result


def two_level_powers(nu: Tensor, theta: Tensor, fine: int, coarse: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """lambda^r for r < T = `fine`, (H, T, N), and lambda^{qT} for q < Q = `coarse`, (H, Q, N), in the calls of one."""
    nu, theta = torch.cat([precise(nu), fine * precise(nu)]), torch.cat([precise(theta), fine * precise(theta)])
    along, across = doubled_powers(nu, theta, max(fine, coarse), dtype).chunk(2)
    return along[:, :fine], across[:, :coarse]


def pairs(x: Tensor) -> Tensor:
    """(*, K, N) complex as a (*, K, 2 N) real view."""
    return torch.view_as_real(x).flatten(-2)


class _BankResponse(torch.autograd.Function):
    """Written out because the graph of the powers would cost more than the matrix products.

    With G the gradient of a product P = p^k X of a power and a weight, the gradient of log p is sum_k k conj(P_k) G_k.
    """

    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, length: int) -> Tensor:
        root = math.isqrt(max(length - 1, 0)) + 1
        fine = max(1, min(length, -(-root // _LANES) * _LANES))
        coarse = -(-length // fine)
        along, across = two_level_powers(nu, theta, fine, coarse, w_re.dtype)
        weight = torch.complex(w_re, w_im)
        left = (
            weight[:, None] * across
        ).conj_physical_()  # conjugate: Re(l r) is the dot product of pairs (conj(l), r)
        kernel = torch.bmm(pairs(left), pairs(along).mT).flatten(1)
        ctx.save_for_backward(left, along, across, weight)
        ctx.dtypes, ctx.steps = (nu.dtype, theta.dtype), (fine, coarse)
        return kernel[:, :length].contiguous()

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        left, along, across, weight = ctx.saved_tensors
        fine, coarse = ctx.steps
        channels, order = weight.shape
        grad = torch.nn.functional.pad(grad, (0, coarse * fine - grad.shape[1])).view(channels, coarse, fine)
        shape = (channels, -1, order, 2)
        grad_left = torch.view_as_complex(torch.bmm(grad, pairs(along)).view(shape))  # of conj(w lambda^{qT})
        grad_along = torch.view_as_complex(torch.bmm(grad.mT, pairs(left)).view(shape))
        steps = torch.arange(fine, device=grad.device, dtype=grad.dtype)[:, None]
        strides = torch.arange(coarse, device=grad.device, dtype=grad.dtype)[:, None] * fine
        by_power = grad_left.mul_(across)
        grad_weight = by_power.sum(1).conj()
        grad_log = (by_power * strides).sum(1).conj() * weight.conj()
        grad_log += (grad_along.mul_(along.conj()) * steps).sum(1)
        nu_type, theta_type = ctx.dtypes
        return -grad_log.real.to(nu_type), grad_log.imag.to(theta_type), grad_weight.real, grad_weight.imag, None
