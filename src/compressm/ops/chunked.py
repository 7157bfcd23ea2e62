"""A diagonal recurrence in blocks of time: matrix products inside a block, the state carried between blocks."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from compressm.ops.blocks import Blocks, block_length, states_kept
from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable, usable_opaquely
from compressm.ops.opaque import chunked_rows
from compressm.ops.precision import nothing
from compressm.ops.remaking import remake, stored


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

    Memory beside input and output: the states at block boundaries, and half as many numbers of states as of inputs;
    the backward pass computes the others anew. Nor is an input stored that can be remade. Inside `torch.compile` it is
    one operator, `compressm::chunked`, that the compiler does not look into.
    """
    given = nu, theta, b_re, b_im, c_re, c_im, feedthrough
    if u.shape[0] == 0 or u.shape[1] == 0:
        return nothing(*given, u, shape=(u.shape[0], u.shape[1], c_re.shape[0]))
    if torch.compiler.is_compiling():
        rows = chunked_rows(*given, _time_first(u), u.shape[0], usable_opaquely(u.device, u.dtype))
        return rows.view(u.shape[1], u.shape[0], c_re.shape[0]).transpose(0, 1)
    y: Tensor = _Chunked.apply(*given, u, usable(u.device, u.dtype))
    return y


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
        block = block_length(batch, nu.shape[0], length, u.element_size())
        if compiled:
            block -= block // 16  # states of a size of their own: a tensor does not fit into the gap of an equal one
        keep = states_kept(nu.shape[0], inputs, -(-length // block))
        origins = stored(b_re), stored(b_im), stored(u)
        blocks = Blocks(nu, theta, b_re, b_im, c_re, c_im, d, batch, block, compiled)
        y, starts, kept = blocks.forward(_time_first(u), keep)
        ctx.save_for_backward(nu, theta, c_re, c_im, d, *chain(*origins), starts, *kept)
        ctx.block, ctx.compiled = block, compiled
        return y.view(length, batch, c_re.shape[0]).transpose(0, 1)

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nu, theta, c_re, c_im, d, *rest = ctx.saved_tensors
        re, im, (u, mean, scale), (starts, *kept) = rest[:3], rest[3:6], rest[6:9], rest[9:]
        batch, length, _ = grad.shape
        blocks = Blocks(nu, theta, remake(*re), remake(*im), c_re, c_im, d, batch, ctx.block, ctx.compiled)
        *grads, grad_u = blocks.backward(_time_first(grad), _time_first(u), starts, kept, mean, scale)
        return *grads, grad_u.view(length, batch, u.shape[2]).transpose(0, 1), None


def _time_first(u: Tensor) -> Tensor:
    """(batch, L, H) as a matrix (L batch, H): one block's rows lie together."""
    return u.transpose(0, 1).reshape(u.shape[0] * u.shape[1], u.shape[2])
