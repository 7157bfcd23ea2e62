"""The pointwise parts of a block, each in one pass where kernels run, and dropout's random choices.

Tensors here are contiguous, in whatever order of dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable

_SHARES = 1 << 16  # dropout's probability is rounded to a multiple of its inverse
_ROW = 4096  # elements of one row where the tensor has no rows of its own


def dropout(x: Tensor, p: float) -> Tensor:
    """Inverted dropout with p rounded to a multiple of 2^-16.

    Four elements share one 64-bit random number; drawing one number an element, as torch's own dropout does on the
    CPU, takes longer than the rest of a narrow block.
    """
    dropped = _shares(p)
    if dropped == 0:
        return x
    if torch.compiler.is_compiling():  # which can make one pass of it, and does not know random_
        return functional.dropout(x, dropped / _SHARES)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15 .. 2^15 - 1
    kept = torch.ge(bits, dropped - _SHARES // 2, out=torch.empty_like(x, memory_format=torch.contiguous_format))
    return x * kept.mul_(_SHARES / (_SHARES - dropped))


def gelu_dropout(x: Tensor, p: float) -> Tensor:
    """dropout(x Phi(x)) with the normal distribution Phi (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    if not _usable(x):
        return dropout(functional.gelu(x), p)
    y: Tensor = _GeluDropout.apply(x, draw(p))
    return y


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor, p: float, channels_first: bool) -> Tensor:
    """`linear` of gelu_dropout(x, p), which is not stored for the backward pass but computed anew with its gradient."""
    if not (_usable(x) and weight.dtype == bias.dtype == x.dtype):
        return linear(gelu_dropout(x, p), weight, bias, channels_first)
    y: Tensor = _GeluLinear.apply(x, weight, bias, draw(p), channels_first)
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor, channels_first: bool) -> Tensor:
    """W x + w along the first or the last dimension of x."""
    if not channels_first:
        return functional.linear(x, weight, bias)
    return torch.addmm(bias[:, None], weight, x.flatten(1)).view(weight.shape[0], *x.shape[1:])


def gate_dropout(both: Tensor, skip: Tensor, p: float, channels_first: bool) -> Tensor:
    """skip + dropout(v * sigmoid(s)), (v, s) the halves of `both` along its first or its last dimension."""
    if not (_usable(both) and _usable(skip)):
        return skip + dropout(functional.glu(both, dim=0 if channels_first else -1), p)
    width = _ROW if channels_first else skip.shape[-1]
    stride, offset = (_ROW, skip.numel()) if channels_first else (2 * width, width)
    y: Tensor = _GateDropout.apply(both, skip, (-(-skip.numel() // max(width, 1)), width, stride, offset), draw(p))
    return y


def standardize(x: Tensor, channels_first: bool, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x - mean) scale per channel of a matrix where kernels run, mean, var and scale = 1 / sqrt(var + eps).

    The channels are the rows, or the columns. Gradients flow through the statistics (Ioffe and Szegedy 2015,
    arXiv 1502.03167).
    """
    y, mean, var, scale = _Standardize.apply(x.contiguous(), channels_first, eps)
    return y, mean, var, scale


def draw(p: float) -> tuple[int, int, int]:
    """Two keys for the random bits of one call, and how many of 2^16 elements it drops."""
    dropped = _shares(p)
    if dropped == 0:
        return 0, 0, 0
    first, second = torch.randint(-(2**31), 2**31, (2,)).tolist()
    return first, second, dropped


def _usable(x: Tensor) -> bool:
    return usable(x.device, x.dtype) and x.is_contiguous()


def _shares(p: float) -> int:
    return min(round(p * _SHARES), _SHARES - 1)


class _GeluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: tuple[int, int, int]) -> Tensor:
        from compressm.ops.kernels import activation

        ctx.save_for_backward(x)
        ctx.draw = draw
        return activation.gelu(x, draw)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        from compressm.ops.kernels import activation

        (x,) = ctx.saved_tensors
        return activation.gelu_gradient(grad.contiguous(), x, ctx.draw)[0], None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, draw: tuple[int, int, int], channels_first: bool
    ) -> Tensor:
        from compressm.ops.kernels import activation

        ctx.save_for_backward(x, weight)
        ctx.draw, ctx.channels_first = draw, channels_first
        return linear(activation.gelu(x, draw), weight, bias, channels_first)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import activation

        x, weight = ctx.saved_tensors
        first: bool = ctx.channels_first
        rows = grad.flatten(1) if first else grad.flatten(0, -2)
        inner = (weight.mT @ rows if first else rows @ weight).view(x.shape)
        grad_x, y = activation.gelu_gradient(inner, x, ctx.draw, out=inner)
        grad_weight = rows @ y.flatten(1).mT if first else rows.mT @ y.flatten(0, -2)
        return grad_x, grad_weight, rows.sum(1 if first else 0), None, None


class _GateDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, both: Tensor, skip: Tensor, rows: tuple[int, int, int, int], draw: tuple[int, int, int]
    ) -> Tensor:
        from compressm.ops.kernels import activation

        ctx.save_for_backward(both)
        ctx.rows, ctx.draw = rows, draw
        return activation.gate(both, skip, rows, draw)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        from compressm.ops.kernels import activation

        (both,) = ctx.saved_tensors
        return activation.gate_gradient(grad.contiguous(), both, ctx.rows, ctx.draw), grad, None, None


class _Standardize(torch.autograd.Function):
    """Stores its input where the channels are last, for others to store that too, and its output otherwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels_first: bool, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from compressm.ops.kernels import moments

        count = x.numel() // x.shape[0 if channels_first else 1]
        mean, var = moments.mean_and_variance(x, channels_first)
        scale = torch.rsqrt(var + eps).float()
        mean = mean.float()
        zero = torch.zeros_like(mean)
        y = moments.affine(x, x, torch.stack([mean, zero, zero, scale]), channels_first)
        ctx.save_for_backward(scale, *((y, zero, torch.ones_like(zero)) if channels_first else (x, mean, scale)))
        ctx.channels_first, ctx.count = channels_first, count
        var = var.float()
        ctx.mark_non_differentiable(mean, var, scale)
        return y, mean, var, scale

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        from compressm.ops.kernels import moments

        scale, stored, centre, factor = ctx.saved_tensors  # y = (stored - centre) factor
        grad, first = grad.contiguous(), ctx.channels_first
        offset, slope = moments.product_sums(grad, stored, centre, first) / ctx.count
        coefficients = torch.stack([offset.float(), (slope * factor.double() ** 2).float(), centre, scale])
        return moments.affine(grad, stored, coefficients, first), None, None
