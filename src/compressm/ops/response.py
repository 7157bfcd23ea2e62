"""The impulse response of a diagonal system by two-level powers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.precision import complex_dtype, precise

# Powers below exp(-cutoff) count as zero: far below rounding, and the product of two of them is not yet subnormal.
_CUTOFF = {torch.float32: 40.0, torch.float64: 350.0}
_LANES = 16  # the short side of the matrix product is a multiple of a vector register


def powers(nu: Tensor, theta: Tensor, exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """exp((-nu + i theta) k) for k in `exponents` (K,), as (K, N) complex of twice the width of `dtype`.

    Evaluated in float64 and rounded once, so that the phase theta k is right for any realistic k. A pole at zero (nu
    infinite) is allowed, with 0^0 = 1.
    """
    cutoff = _CUTOFF[dtype]
    decay = exponents[:, None] * precise(nu).clamp(max=2 * cutoff)
    radius = torch.exp(-decay).masked_fill_(decay > cutoff, 0.0)
    return torch.polar(radius, exponents[:, None] * precise(theta)).to(complex_dtype(dtype))


def impulse_response(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    length: int,
    feedthrough: Tensor | None = None,
) -> Tensor:
    """K[l] = Re(C diag(lambda^l) B) for l < length, as (H_in, H_out, length) with lambda = exp(-nu + i theta).

    With l = q T + r and T about sqrt(length) the powers split, lambda^l = lambda^{qT} lambda^r, and K is a real matrix
    product of (C lambda^{qT}) with (lambda^r B): no array of the size length * N is ever formed. A `feedthrough` is
    added to the diagonal of K[0].

    Shapes: nu, theta (N,); b_re, b_im (N, H_in); c_re, c_im (H_out, N); feedthrough (H,) with H = H_in = H_out.
    """
    kernel: Tensor = _ImpulseResponse.apply(nu, theta, b_re, b_im, c_re, c_im, length, feedthrough)
    return kernel


def _pairs(x: Tensor) -> Tensor:
    """(*, K, N) complex as a (*, K, 2 N) real view."""
    return torch.view_as_real(x).flatten(-2)


class _ImpulseResponse(torch.autograd.Function):
    """Written out because the graph of the powers would cost more than the matrix products.

    With G the gradient of a product P = p^k X of a power and a matrix, the gradient of log p is sum_k k conj(P_k) G_k.
    """

    @staticmethod
    def forward(
        ctx: Any,
        nu: Tensor,
        theta: Tensor,
        b_re: Tensor,
        b_im: Tensor,
        c_re: Tensor,
        c_im: Tensor,
        length: int,
        feedthrough: Tensor | None,
    ) -> Tensor:
        inputs, outputs = b_re.shape[1], c_re.shape[0]
        root = math.isqrt(max(length - 1, 0)) + 1
        fine = max(1, min(length, -(-root // _LANES) * _LANES))
        coarse = -(-length // fine)
        steps = torch.arange(fine, device=nu.device, dtype=precise(nu).dtype)
        strides = torch.arange(coarse, device=nu.device, dtype=steps.dtype) * fine
        power = powers(nu, theta, torch.cat([strides, steps]), b_re.dtype)
        across, along = power[:coarse].conj_physical(), power[coarse:]
        b, c = torch.complex(b_re, b_im).mT.contiguous(), torch.complex(c_re, -c_im)
        left = c[:, None] * across  # (H_out, Q, N), conjugate: Re(l r) is the dot product of pairs (conj(l), r)
        right = b[:, None] * along  # (H_in, T, N)
        kernel = torch.matmul(_pairs(left).flatten(0, 1), _pairs(right).mT)  # (H_in, H_out * Q, T)
        ctx.save_for_backward(left, right, across, along, strides, steps)
        ctx.dtypes = nu.dtype, theta.dtype
        kernel = kernel.view(inputs, outputs, coarse * fine)[..., :length].contiguous()
        if feedthrough is not None and length > 0:
            kernel[..., 0].diagonal().add_(feedthrough)
        return kernel

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        left, right, across, along, strides, steps = ctx.saved_tensors
        (outputs, coarse, order), (inputs, fine, _) = left.shape, right.shape
        grad_feedthrough = grad[..., :1].sum(-1).diagonal() if ctx.needs_input_grad[7] else None
        grad = torch.nn.functional.pad(grad, (0, coarse * fine - grad.shape[-1]))
        grad = grad.view(inputs, outputs * coarse, fine)
        flat_left, flat_right = _pairs(left).flatten(0, 1), _pairs(right).flatten(0, 1)
        by_output = grad.transpose(0, 1).reshape(outputs * coarse, inputs * fine)
        grad_left = torch.view_as_complex((by_output @ flat_right).view(outputs, coarse, order, 2))
        grad_right = torch.view_as_complex(torch.matmul(grad.mT, flat_left).view(inputs, fine, order, 2))
        from_left = (grad_left * left.conj()).sum(0).conj() * strides[:, None]
        from_right = (grad_right * right.conj()).sum(0) * steps[:, None]
        grad_log = from_left.sum(0) + from_right.sum(0)
        grad_c, grad_b = (grad_left * across.conj()).sum(1), (grad_right * along.conj()).sum(1).mT
        nu_type, theta_type = ctx.dtypes
        return (
            -grad_log.real.to(nu_type),
            grad_log.imag.to(theta_type),
            grad_b.real,
            grad_b.imag,
            grad_c.real,
            -grad_c.imag,
            None,
            grad_feedthrough,
        )
