"""A diagonal recurrence in blocks of time: matrix products inside a block, the state carried between blocks."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable
from compressm.ops.products import times
from compressm.ops.recurrence import CompiledRecurrence, Recurrence, TorchRecurrence
from compressm.ops.remaking import remake, stored

_BLOCK_BYTES = 1 << 20  # states of one block: about what a core's second-level cache holds
_SHORTEST, _LONGEST = 16, 128


def block_length(batch: int, order: int, length: int, itemsize: int) -> int:
    """Steps in a block, such that its states `(T, batch, N)` stay in cache: a power of two, or the whole `length`."""
    fitting = _BLOCK_BYTES // max(1, 2 * itemsize * batch * order)
    block = max(_SHORTEST, min(_LONGEST, 1 << max(0, fitting.bit_length() - 1)))
    return max(1, min(length, block))


def diagonal_chunked(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    feedthrough: Tensor | None = None,
) -> Tensor:
    """`diagonal_reference` plus `feedthrough` (H,) times u, in blocks of time; same shapes.

    Memory beside input and output: the states at block boundaries, and all states if there are fewer of them than
    inputs; otherwise the backward pass computes them anew. Nor is an input stored that can be remade.
    """
    if u.shape[0] == 0 or u.shape[1] == 0:
        return u.sum() + u.new_zeros(u.shape[0], u.shape[1], c_re.shape[0])
    compiled = usable(u.device, u.dtype)
    y: Tensor = _Chunked.apply(nu, theta, b_re, b_im, c_re, c_im, feedthrough, u, compiled)
    return y


def _drive(b_re: Tensor, b_im: Tensor, compiled: bool) -> Tensor:
    """The real matrix (2 N, H_in) of B u, [re (N) | im (N)] in a row of states, or pairs re, im."""
    return torch.stack([b_re, b_im], dim=0 if compiled else 1).reshape(2 * b_re.shape[0], b_re.shape[1])


def _readout(c_re: Tensor, c_im: Tensor, compiled: bool) -> Tensor:
    """The real matrix (H_out, 2 N) of y = Re(C x) for a row of states."""
    return torch.stack([c_re, -c_im], dim=1 if compiled else 2).reshape(c_re.shape[0], 2 * c_re.shape[1])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        nu: Tensor,
        theta: Tensor,
        b_re: Tensor,
        b_im: Tensor,
        c_re: Tensor,
        c_im: Tensor,
        d: Tensor | None,
        u: Tensor,
        compiled: bool,
    ) -> Tensor:
        batch, length, inputs = u.shape
        b, c = _drive(b_re, b_im, compiled), _readout(c_re, c_im, compiled)
        block, keep = block_length(batch, nu.shape[0], length, u.element_size()), nu.shape[0] <= inputs
        if compiled and keep:
            block -= block // 16  # states of a size of their own: a tensor does not fit into the gap of an equal one
        origins = stored(b_re), stored(b_im), stored(u)
        u = _time_first(u)
        recurrence = _recurrence(nu, theta, batch, block, u.dtype, compiled)
        y = u.new_empty(length * batch, c.shape[0])
        state = u.new_zeros(batch, 2 * nu.shape[0])
        starts: list[Tensor] = []
        kept: list[Tensor] = []  # in pieces, which fit into the gaps of freed memory
        for part, y_part in zip(u.split(block * batch), y.split(block * batch), strict=True):
            x = times(part, b)
            starts.append(state)
            state = recurrence.advance_(x, state)
            _add_scaled(times(x, c), part, d, y_part)
            if keep:
                kept.append(x)
        ctx.save_for_backward(nu, theta, c_re, c_im, d, *chain(*origins), torch.stack(starts), *kept)
        ctx.block, ctx.compiled = block, compiled
        return y.view(length, batch, c.shape[0]).transpose(0, 1)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nu, theta, c_re, c_im, d, *rest = ctx.saved_tensors
        re, im, (u, mean, scale), (starts, *kept) = rest[:3], rest[3:6], rest[6:9], rest[9:]
        b, c = _drive(remake(*re), remake(*im), ctx.compiled), _readout(c_re, c_im, ctx.compiled)
        u = _time_first(u)
        batch, length, outputs = grad.shape
        block: int = ctx.block
        grad = _time_first(grad)
        recurrence = _recurrence(nu, theta, batch, block, u.dtype, ctx.compiled)
        grad_b, grad_c, grad_u = torch.zeros_like(b), torch.zeros_like(c), torch.empty_like(u)
        grad_d = None if d is None else torch.zeros_like(d)
        ahead = torch.zeros_like(starts[0])
        rows = [t.split(block * batch) for t in (u, grad, grad_u)]
        for index in reversed(range(len(starts))):
            part, g_part, u_part = (t[index] for t in rows)
            part = remake(part, mean, scale)
            if kept:
                x = kept[index]
            else:
                x = times(part, b)
                recurrence.advance_(x, starts[index])
            g = times(g_part, c.mT)
            ahead = recurrence.retreat_(g, x, starts[index], ahead)
            grad_c.addmm_(g_part.mT, x)
            grad_b.addmm_(g.mT, part)
            _add_scaled(times(g, b.mT), g_part, d, u_part)
            if grad_d is not None:
                grad_d += torch.linalg.vecdot(g_part, part, dim=0)
        grad_nu, grad_theta = recurrence.gradient()
        side = 0 if ctx.compiled else 1
        pairs = (2, nu.shape[0]) if ctx.compiled else (nu.shape[0], 2)
        b_re, b_im = grad_b.view(*pairs, u.shape[1]).unbind(side)
        c_re, c_im = grad_c.view(outputs, *pairs).unbind(side + 1)
        grad_u = grad_u.view(length, batch, u.shape[1]).transpose(0, 1)
        poles = grad_nu.to(nu.dtype), grad_theta.to(theta.dtype)
        return *poles, b_re, b_im, c_re, c_im.neg(), grad_d, grad_u, None


def _time_first(u: Tensor) -> Tensor:
    """(batch, L, H) as a matrix (L batch, H): one block's rows lie together."""
    return u.transpose(0, 1).reshape(u.shape[0] * u.shape[1], u.shape[2])


def _add_scaled(y: Tensor, u: Tensor, d: Tensor | None, out: Tensor) -> None:
    """out = y + d u."""
    if d is None:
        out.copy_(y)
    else:
        torch.addcmul(y, u, d, out=out)


def _recurrence(nu: Tensor, theta: Tensor, batch: int, block: int, dtype: torch.dtype, compiled: bool) -> Recurrence:
    if compiled:
        return CompiledRecurrence(nu, theta, batch, block)
    return TorchRecurrence(nu, theta, batch, block, dtype)
