"""What follows the recurrence in a block as one operation, which narrow blocks with the channels first run compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.gated import gelu_gate_rows
from compressm.ops.kernels import usable
from compressm.ops.pointwise import draw, gate_dropout, gelu_linear

_WIDEST = 64  # channels up to which small tiles are faster than matrix products with passes between them


def gelu_gate(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, p: float, channels_first: bool) -> Tensor:
    """skip + dropout(v * sigmoid(s)) with (v, s) = W dropout(x Phi(x)) + w, all dropping the share p.

    Channels are the first or the last dimension of x and skip. A narrow block with the channels first runs in one pass
    forward and one backward that computes everything but x anew; a wider one as `gate_dropout` of `gelu_linear`, one
    with the channels last as `gelu_gate_rows`. Random choices are the same.
    """
    if channels_first and _fits(x, skip, weight, bias):
        inner = draw(p)
        y: Tensor = _GeluGate.apply(x, skip, weight, bias, inner, draw(p))
        return y
    if not channels_first:
        return gelu_gate_rows(x, skip, weight, bias, p)
    return gate_dropout(gelu_linear(x, weight, bias, p, channels_first), skip, p, channels_first)


def _fits(x: Tensor, *others: Tensor) -> bool:
    narrow = 0 < x.shape[0] <= _WIDEST and x.numel() > 0
    return narrow and usable(x.device, x.dtype) and all(t.dtype == x.dtype and t.is_contiguous() for t in (x, *others))


class _GeluGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor,
        weight: Tensor,
        bias: Tensor,
        inner: tuple[int, int, int],
        outer: tuple[int, int, int],
    ) -> Tensor:
        from compressm.ops.kernels import tail

        ctx.save_for_backward(x, weight, bias)
        ctx.inner, ctx.outer = inner, outer
        y = tail.forward(x.flatten(1), skip.flatten(1), weight, bias, inner, outer)
        return y.view(skip.shape)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import tail

        x, weight, bias = ctx.saved_tensors
        grad = dense(grad)
        grad_x, *rest = tail.backward(grad.flatten(1), x.flatten(1), weight, bias, ctx.inner, ctx.outer)
        return grad_x.view(x.shape), grad, *rest, None, None


def dense(x: Tensor) -> Tensor:
    """x contiguous; what is expanded is copied with its memory in order first, row by row then."""
    if x.is_contiguous():
        return x
    small = x[tuple(slice(0, 1) if s == 0 else slice(None) for s in x.stride())]
    return small.contiguous().expand_as(x).contiguous()
