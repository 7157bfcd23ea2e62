"""A diagonal recurrence in blocks of time: matrix products inside a block, the state carried between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.ops.kernels import usable
from compressm.ops.recurrence import CompiledRecurrence, Recurrence, TorchRecurrence

_BLOCK_BYTES = 1 << 20  # states of one block: about what a core's second-level cache holds
_SHORTEST, _LONGEST = 16, 128


def block_length(batch: int, order: int, length: int, itemsize: int) -> int:
    """Steps in a block, such that its states `(T, batch, N)` stay in cache: a power of two, or the whole `length`."""
    fitting = _BLOCK_BYTES // max(1, 2 * itemsize * batch * order)
    block = max(_SHORTEST, min(_LONGEST, 1 << max(0, fitting.bit_length() - 1)))
    return max(1, min(length, block))


def diagonal_chunked(
    nu: Tensor, theta: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, u: Tensor
) -> Tensor:
    """`diagonal_reference` in blocks of time; same shapes.

    Memory beside input and output: the states at block boundaries, and all states if there are fewer of them than
    inputs; otherwise the backward pass computes them anew.
    """
    if u.shape[0] == 0 or u.shape[1] == 0:
        return u.sum() + u.new_zeros(u.shape[0], u.shape[1], c_re.shape[0])
    order, compiled = nu.shape[0], usable(u.device, u.dtype)
    side = 0 if compiled else 1  # [re (N) | im (N)] in a row of states, or pairs re, im
    b = torch.stack([b_re, b_im], dim=side).reshape(2 * order, u.shape[2])
    y: Tensor = _Chunked.apply(nu, theta, b, c_re, c_im, u, compiled)
    return y


def _readout(c_re: Tensor, c_im: Tensor, compiled: bool) -> Tensor:
    """The real matrix (H_out, 2 N) of y = Re(C x) for a row of states."""
    return torch.stack([c_re, -c_im], dim=1 if compiled else 2).reshape(c_re.shape[0], 2 * c_re.shape[1])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, nu: Tensor, theta: Tensor, b: Tensor, c_re: Tensor, c_im: Tensor, u: Tensor, compiled: bool
    ) -> Tensor:
        batch, length, inputs = u.shape
        c = _readout(c_re, c_im, compiled)
        block = block_length(batch, nu.shape[0], length, u.element_size())
        u = u.transpose(0, 1).reshape(length * batch, inputs)  # time first: one block's rows lie together
        recurrence = _recurrence(nu, theta, batch, block, u.dtype, compiled)
        y = u.new_empty(length * batch, c.shape[0])
        state = u.new_zeros(batch, 2 * nu.shape[0])
        starts: list[Tensor] = []
        kept: list[Tensor] = []
        for part, y_part in zip(u.split(block * batch), y.split(block * batch), strict=True):
            x = part @ b.mT
            starts.append(state)
            state = recurrence.advance_(x, state)
            torch.mm(x, c.mT, out=y_part)
            if nu.shape[0] <= inputs:
                kept.append(x)
        ctx.save_for_backward(nu, theta, b, c_re, c_im, u, torch.stack(starts), *kept)
        ctx.block, ctx.compiled = block, compiled
        return y.view(length, batch, c.shape[0]).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nu, theta, b, c_re, c_im, u, starts, *kept = ctx.saved_tensors
        c = _readout(c_re, c_im, ctx.compiled)
        batch, length, outputs = grad.shape
        block: int = ctx.block
        grad = grad.transpose(0, 1).reshape(length * batch, outputs)
        recurrence = _recurrence(nu, theta, batch, block, u.dtype, ctx.compiled)
        grad_b, grad_c, grad_u = torch.zeros_like(b), torch.zeros_like(c), torch.empty_like(u)
        ahead = torch.zeros_like(starts[0])
        rows = [t.split(block * batch) for t in (u, grad, grad_u)]
        for index in reversed(range(len(starts))):
            part, g_part, u_part = (t[index] for t in rows)
            if kept:
                x = kept[index]
            else:
                x = part @ b.mT
                recurrence.advance_(x, starts[index])
            g = g_part @ c
            ahead = recurrence.retreat_(g, x, starts[index], ahead)
            grad_c.addmm_(g_part.mT, x)
            grad_b.addmm_(g.mT, part)
            torch.mm(g, b, out=u_part)
        grad_nu, grad_theta = recurrence.gradient()
        grad_u = grad_u.view(length, batch, u.shape[1]).transpose(0, 1)
        re, im = grad_c.view(outputs, 2, -1).unbind(1) if ctx.compiled else grad_c.view(outputs, -1, 2).unbind(2)
        return grad_nu.to(nu.dtype), grad_theta.to(theta.dtype), grad_b, re, im.neg(), grad_u, None


def _recurrence(nu: Tensor, theta: Tensor, batch: int, block: int, dtype: torch.dtype, compiled: bool) -> Recurrence:
    if compiled:
        return CompiledRecurrence(nu, theta, batch, block)
    return TorchRecurrence(nu, theta, batch, block, dtype)
