"""The second half of a block with channels last: activation, gated linear unit, dropout and skip connection.

A few rows at a time, so that what is neither stored nor returned stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable
from compressm.ops.memory import reusable
from compressm.ops.pointwise import draw, gate_dropout, gelu_linear
from compressm.ops.products import times

_ELEMENTS = 352 << 10  # of the gradient before the gate, for the rows computed at a time: a little less than states
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
    y: Tensor = _GeluGateRows.apply(x, skip, weight, bias, draw(p), draw(p))
    return y


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

        out, step = reusable(skip.shape, skip), _step(weight)
        closed: list[Tensor] = []  # in pieces, which fit into the gaps of freed memory
        parts = (t.flatten(0, -2).split(step) for t in (x, skip, out))
        for index, (x_part, skip_part, out_part) in enumerate(zip(*parts, strict=True)):
            first = index * step
            both = times(activation.gelu(x_part, inner, first * x.shape[-1]), weight, bias)
            closed.append(reusable(skip_part.shape, skip))
            activation.gate_rows(both, skip_part, out_part, closed[-1], outer, first * skip.shape[-1])
        ctx.save_for_backward(x, skip, weight, out, *closed)
        ctx.inner, ctx.outer = inner, outer
        return out

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import activation

        x, skip, weight, out, *closed = ctx.saved_tensors
        step = _step(weight)
        grad_x, grad_weight = reusable(x.shape, x), torch.zeros_like(weight)
        grad_bias = weight.new_zeros(len(weight))
        both = weight.new_empty(min(step, math.prod(x.shape[:-1])), len(weight))
        parts = (t.flatten(0, -2).split(step) for t in (x, grad_x, skip, out))
        for index, (g, x_part, grad_part, skip_part, out_part) in enumerate(
            zip(_parts(grad, step), *parts, strict=True)
        ):
            first, both = index * step, both[: len(g)]
            activation.gate_rows_gradient(g, skip_part, out_part, closed[index], both, ctx.outer, first * g.shape[1])
            within = times(both, weight.mT)
            _, activated = activation.gelu_gradient(within, x_part, ctx.inner, out=grad_part, first=first * x.shape[-1])
            grad_weight.addmm_(both.mT, activated)
            grad_bias += both.sum(0)
        return grad_x, grad, grad_weight, grad_bias, None, None


def _parts(grad: Tensor, step: int) -> Iterator[Tensor]:
    """The rows (..., H) of a gradient, `step` at a time; one that is the same all along is not written out first."""
    if grad.ndim < 3 or grad.stride(0) != 0:
        yield from grad.flatten(0, -2).contiguous().split(step)
        return
    rows = grad[0].flatten(0, -2)
    for first in range(0, math.prod(grad.shape[:-1]), step):
        last = min(first + step, math.prod(grad.shape[:-1]))
        yield rows[torch.arange(first, last, device=rows.device) % len(rows)]


def _step(weight: Tensor) -> int:
    """Rows computed at a time."""
    return max(_FEWEST, _ELEMENTS // max(1, len(weight)))
