"""A diagonal recurrence as a causal convolution with its impulse response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable
from compressm.ops.precision import nothing
from compressm.ops.response import impulse_response


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
    """y[o, b] = sum_i K[i, o] * u[i, b], linear convolutions cut to the first L samples, channels first.

    Transforms run over contiguous time. The products over channels are batched over frequency, which therefore comes
    first there: (F, H_out, H_in) times (F, H_in, batch). Saved are the transforms, not the inputs. In reversed time
    the adjoint of a causal convolution is a causal convolution, so the backward pass needs no conjugates.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        ctx.length, ctx.size = u.shape[-1], good_size(2 * u.shape[-1] - 1)
        spectrum = _to_frequency(u, ctx.size)
        response = _to_frequency(kernel, ctx.size)
        ctx.save_for_backward(spectrum, response)
        return _to_time(torch.bmm(response.mT, spectrum), ctx.size, ctx.length).contiguous()

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        spectrum, response = ctx.saved_tensors
        reversed_grad = _to_frequency(grad.flip(-1), ctx.size)
        grad_u = grad_kernel = None
        if ctx.needs_input_grad[0]:
            grad_u = _to_time(torch.bmm(response, reversed_grad), ctx.size, ctx.length).flip(-1)
        if ctx.needs_input_grad[1]:
            grad_kernel = _to_time(torch.bmm(spectrum, reversed_grad.mT), ctx.size, ctx.length).flip(-1)
        return grad_u, grad_kernel


class _CompiledConvolution(torch.autograd.Function):
    """As _CausalConvolution, with the products over channels by a kernel that takes transforms as they are."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        from compressm.ops.kernels import mixing

        ctx.length, ctx.size = u.shape[-1], good_size(2 * u.shape[-1] - 1)
        spectrum, response = (torch.fft.rfft(x, n=ctx.size) for x in (u, kernel))
        ctx.save_for_backward(spectrum, response)
        return _first(mixing.mix(response, spectrum), ctx.size, ctx.length)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        from compressm.ops.kernels import mixing

        spectrum, response = ctx.saved_tensors
        arriving = torch.fft.rfft(grad, n=ctx.size)
        grad_u = grad_kernel = None
        if ctx.needs_input_grad[0]:
            grad_u = _first(mixing.mix(response, arriving, adjoint=True), ctx.size, ctx.length)
        if ctx.needs_input_grad[1]:
            grad_kernel = _first(mixing.correlate(spectrum, arriving), ctx.size, ctx.length)
        return grad_u, grad_kernel


def _first(transform: Tensor, size: int, length: int) -> Tensor:
    return torch.fft.irfft(transform, n=size)[..., :length].contiguous()


def _to_frequency(x: Tensor, size: int) -> Tensor:
    """The transform over the last dimension of x (M, K, L), frequency first: (size / 2 + 1, M, K)."""
    rows, columns, length = x.shape
    transform = torch.fft.rfft(x.reshape(rows * columns, length), n=size)
    return transform.mT.contiguous().view(size // 2 + 1, rows, columns)


def _to_time(x: Tensor, size: int, length: int) -> Tensor:
    """The first `length` samples (M, K, length) of the inverse transform of x (size / 2 + 1, M, K)."""
    samples = torch.fft.irfft(x.flatten(1).mT, n=size)
    return samples.view(x.shape[1], x.shape[2], size)[..., :length]


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_k = sum_{l <= k} K[l] u_{k-l} for u (batch, L, H_in) and a kernel (H_in, H_out, L); returns (batch, L, H_out).

    Channels come first in the memory of the output, and cost no copy where they do so in the input's:
    `x.permute(2, 0, 1)` is contiguous.
    """
    if u.numel() == 0 or kernel.numel() == 0:
        return nothing(kernel, u, shape=(u.shape[0], u.shape[1], kernel.shape[1]))
    convolution = _CompiledConvolution if usable(u.device, u.dtype) else _CausalConvolution
    y: Tensor = convolution.apply(u.permute(2, 0, 1), kernel)
    return y.permute(1, 2, 0)


def diagonal_convolution(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    feedthrough: Tensor | None = None,
) -> Tensor:
    """`diagonal_reference` as an FFT convolution; same shapes. The feedthrough is one more term of the kernel."""
    return causal_convolution(u, impulse_response(nu, theta, b_re, b_im, c_re, c_im, u.shape[1], feedthrough))
