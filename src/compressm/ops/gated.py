"""The second half of a block with channels last: activation, gated linear unit, dropout and skip connection.

A few rows at a time, so that what is neither stored nor returned stays in cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable
from compressm.ops.pointwise import draw, gate_dropout, gelu_linear
from compressm.ops.products import times

_ELEMENTS = 240 << 10  # of the gradient before the gate, for the rows computed at a time
_FEWEST = 64


def gelu_gate_rows(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
    """skip + dropout(v * sigmoid(s)) with (v, s) = W dropout(x Phi(x)) + w, channels last; p is dropout's share.

    x (..., H_in), skip (..., H_out), W (2 H_out, H_in), w (2 H_out,). The backward pass needs x, s, skip and the
    output, of which the last two are what follows and precedes it in a stack of blocks: dropout(v * sigmoid(s)) is
    their difference.
    """
    given = (x, skip, weight, bias)
    if not all(usable(t.device, t.dtype) and t.is_contiguous() for t in given):
        return gate_dropout(gelu_linear(x, weight, bias, p, False), skip, p, False)
    rows = x.flatten(0, -2), skip.flatten(0, -2)
    y: Tensor = _GeluGateRows.apply(*rows, weight, bias, draw(p), draw(p))
    return y.view(skip.shape)


class _GeluGateRows(torch.autograd.Function):
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
        from compressm.ops.kernels import activation

        out, step = torch.empty_like(skip), _step(weight)
        closed: list[Tensor] = []  # in pieces, which fit into the gaps of freed memory
        parts = (t.split(step) for t in (x, skip, out))
        for index, (x_part, skip_part, out_part) in enumerate(zip(*parts, strict=True)):
            first = index * step
            both = times(activation.gelu(x_part, inner, first * x.shape[1]), weight, bias)
            closed.append(torch.empty_like(skip_part))
            activation.gate_rows(both, skip_part, out_part, closed[-1], outer, first * skip.shape[1])
        ctx.save_for_backward(x, skip, weight, out, *closed)
        ctx.inner, ctx.outer = inner, outer
        return out

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import activation

        x, skip, weight, out, *closed = ctx.saved_tensors
        step = _step(weight)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        grad_bias = weight.new_zeros(len(weight))
        both = weight.new_empty(min(step, len(x)), len(weight))
        parts = (t.split(step) for t in (grad, x, grad_x, skip, out))
        for index, (g, x_part, grad_part, skip_part, out_part) in enumerate(zip(*parts, strict=True)):
            first, both, g = index * step, both[: len(g)], g.contiguous()
            activation.gate_rows_gradient(g, skip_part, out_part, closed[index], both, ctx.outer, first * skip.shape[1])
            within = times(both, weight.mT)
            _, activated = activation.gelu_gradient(within, x_part, ctx.inner, out=grad_part, first=first * x.shape[1])
            grad_weight.addmm_(both.mT, activated)
            grad_bias += both.sum(0)
        return grad_x, grad, grad_weight, grad_bias, None, None


def _step(weight: Tensor) -> int:
    """Rows computed at a time."""
    return max(_FEWEST, _ELEMENTS // max(1, len(weight)))
