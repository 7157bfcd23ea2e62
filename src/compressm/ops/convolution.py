"""A diagonal recurrence as a causal convolution with its impulse response."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Powers smaller than exp(-cutoff) are set to zero: far below rounding, and no product of two becomes subnormal.
_CUTOFF = {torch.float32: 40.0, torch.float64: 350.0}


def powers(nu: Tensor, theta: Tensor, exponents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp((-nu + i theta) k) for k in `exponents` (K,), each (K, N) in `dtype`.

    Evaluated in float64, so that the phase theta k is right to the last bit of `dtype` for any realistic k. A pole
    at zero (nu infinite) is allowed, with 0^0 = 1.
    """
    nu = nu.double().clamp(max=1e6)
    decay = exponents[:, None] * nu
    cutoff = _CUTOFF[dtype]
    radius = torch.exp(-decay.clamp(max=2 * cutoff)) * (decay < cutoff)
    phase = exponents[:, None] * theta.double()
    return (radius * torch.cos(phase)).to(dtype), (radius * torch.sin(phase)).to(dtype)


def impulse_response(
    nu: Tensor, theta: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, length: int
) -> Tensor:
    """K[l] = Re(C diag(lambda^l) B) for l < length, as (H_out, H_in, length).

    With l = q T + r and T about sqrt(length) the powers split, lambda^l = lambda^{qT} lambda^r, and K is one real
    matrix product of (C lambda^{qT}) with (lambda^r B): no array of the size length * N is ever formed.
    """
    dtype = b_re.dtype
    (order, inputs), outputs = b_re.shape, c_re.shape[0]
    fine = max(1, math.isqrt(max(length - 1, 0)) + 1)
    coarse = -(-length // fine)
    steps = torch.arange(max(fine, coarse), dtype=torch.float64, device=nu.device)
    coarse_re, coarse_im = powers(nu, theta, steps[:coarse] * fine, dtype)
    fine_re, fine_im = powers(nu, theta, steps[:fine], dtype)
    coarse_re, coarse_im = coarse_re[:, None], coarse_im[:, None]  # (Q, 1, N) against C (H_out, N)
    left = torch.cat([c_re * coarse_re - c_im * coarse_im, -(c_re * coarse_im + c_im * coarse_re)], dim=-1)
    bt_re, bt_im, fine_re, fine_im = b_re.mT, b_im.mT, fine_re[:, None], fine_im[:, None]  # (H_in, N), (T, 1, N)
    right = torch.cat([bt_re * fine_re - bt_im * fine_im, bt_re * fine_im + bt_im * fine_re], dim=-1)
    kernel = left.view(coarse * outputs, 2 * order) @ right.view(fine * inputs, 2 * order).mT
    kernel = kernel.view(coarse, outputs, fine, inputs).permute(1, 3, 0, 2).reshape(outputs, inputs, coarse * fine)
    return kernel[..., :length]


def good_size(minimum: int) -> int:
    """The smallest length of the form 2^a 3^b 5^c 7^d that is even and at least `minimum`; FFTs of it are fast."""
    best = 1 << max(1, (minimum - 1).bit_length())
    for seven in _multiples(1, 7, best):
        for five in _multiples(seven, 5, best):
            for three in _multiples(five, 3, best):
                twos = max(1, (-(-minimum // three) - 1).bit_length())
                best = min(best, three << twos)
    return best


def _multiples(start: int, factor: int, limit: int) -> list[int]:
    values = []
    while start < limit:
        values.append(start)
        start *= factor
    return values


class _CausalConvolution(torch.autograd.Function):
    """y[b, o] = sum_i K[o, i] * u[b, i], linear convolution cut to the first L samples.

    Transforms run over contiguous time. The products over channels are batched over frequency, which therefore comes
    first there: (F, H_out, H_in) times (F, H_in, batch). Saved are the transforms, not the inputs.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[1]
        size = good_size(2 * length - 1)
        spectrum = _to_frequency(u.permute(2, 0, 1), size)
        response = _to_frequency(kernel, size)
        ctx.save_for_backward(spectrum, response)
        ctx.length, ctx.size = length, size
        return _to_time(torch.bmm(response, spectrum), size, length).permute(1, 2, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        spectrum, response = ctx.saved_tensors
        g = _to_frequency(grad.permute(2, 0, 1), ctx.size)
        grad_u = grad_kernel = None
        if ctx.needs_input_grad[0]:
            product = torch.bmm(response.mT.conj_physical(), g)
            grad_u = _to_time(product, ctx.size, ctx.length).permute(1, 2, 0)
        if ctx.needs_input_grad[1]:
            grad_kernel = _to_time(torch.bmm(g, spectrum.mT.conj_physical()), ctx.size, ctx.length)
        return grad_u, grad_kernel


def _to_frequency(x: Tensor, size: int) -> Tensor:
    """The transform over the last dimension of x (M, K, L), frequency first: (size / 2 + 1, M, K)."""
    rows, columns, length = x.shape
    transform = torch.fft.rfft(x.reshape(rows * columns, length), n=size)
    return transform.mT.contiguous().view(size // 2 + 1, rows, columns)


def _to_time(x: Tensor, size: int, length: int) -> Tensor:
    """The first `length` samples (M, K, length), contiguous, of the inverse transform of x (size / 2 + 1, M, K)."""
    rows, columns = x.shape[1:]
    samples = torch.fft.irfft(x.flatten(1).mT, n=size)[:, :length]
    return samples.reshape(rows, columns, length)


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_k = sum_{l <= k} K[l] u_{k-l} for u (batch, L, H_in) and a kernel (H_out, H_in, L); returns (batch, L, H_out).

    Channels come first in the memory of the output, and cost no copy where they do so in the input's:
    `x.permute(2, 0, 1)` is contiguous.
    """
    if u.numel() == 0:
        return u.sum() + kernel.sum() + u.new_zeros(u.shape[0], u.shape[1], kernel.shape[0])
    y: Tensor = _CausalConvolution.apply(u, kernel)
    return y


def diagonal_convolution(
    nu: Tensor, theta: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, u: Tensor
) -> Tensor:
    """`diagonal_reference` as an FFT convolution; same shapes."""
    return causal_convolution(u, impulse_response(nu, theta, b_re, b_im, c_re, c_im, u.shape[1]))
