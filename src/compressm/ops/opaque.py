"""Recurrences as operators that `torch.compile` calls and does not look into.

Traced, a recurrence over blocks is a graph of thousands of nodes, with writes into views, which takes Inductor longer
to compile than a run may last. As an operator it is one node forward and one backward, and what runs is what runs
without the compiler, compiled kernels included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.blocks import Blocks, block_length, states_kept

_SYSTEM = "Tensor nu, Tensor theta, Tensor b_re, Tensor b_im, Tensor c_re, Tensor c_im, Tensor? d"
_CALL = "SymInt batch, bool compiled"
_System = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
_Made = tuple[Tensor, Tensor, Tensor]


def chunked_rows(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    d: Tensor | None,
    u: Tensor,
    batch: int,
    compiled: bool,
) -> Tensor:
    """`diagonal_chunked` of rows of steps, then sequences: (L * batch, H_out) for u (L * batch, H_in)."""
    y: Tensor = _chunked(nu, theta, b_re, b_im, c_re, c_im, d, u, batch, compiled)[0]
    return y


def _blocks(system: _System, u: Tensor, batch: int, compiled: bool) -> Blocks:
    length = u.shape[0] // batch
    return Blocks(*system, batch, block_length(batch, system[0].shape[0], length, u.element_size()), compiled)


@torch.library.custom_op(
    "compressm::chunked",
    mutates_args=(),
    schema=f"({_SYSTEM}, Tensor u, {_CALL}) -> (Tensor, Tensor, Tensor)",
)
def _chunked(*arguments: Any) -> _Made:
    """The output, the states before each block, and those states that are stored."""
    *system, u, batch, compiled = arguments
    blocks = _blocks(tuple(system), u, batch, compiled)
    keep = states_kept(system[0].shape[0], u.shape[1], -(-u.shape[0] // (blocks.block * batch)))
    with torch.autocast(u.device.type, enabled=False):
        y, starts, kept = blocks.forward(u, keep)
    return y, starts, torch.cat(kept) if keep else u.new_empty(0, starts.shape[-1])


@torch.library.custom_op(
    "compressm::chunked_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_SYSTEM}, Tensor u, {_CALL}, Tensor starts, Tensor kept) -> Tensor[]",
)
def _chunked_backward(*arguments: Any) -> list[Tensor]:
    """The gradients of the system's tensors and of the input; none for d where there is none."""
    grad, *system, u, batch, compiled, starts, kept = arguments
    blocks = _blocks(tuple(system), u, batch, compiled)
    pieces = kept.split(blocks.block * batch) if len(kept) else ()
    with torch.autocast(u.device.type, enabled=False):
        *grads, grad_u = blocks.backward(grad.contiguous(), u.contiguous(), starts, pieces)
    apart = [g.clone(memory_format=torch.contiguous_format) for g in grads if g is not None]  # not views of one tensor
    return [*apart, grad_u]


@_chunked.register_fake
def _chunked_shapes(*arguments: Any) -> _Made:
    *system, u, batch, _ = arguments
    order, rows = system[0].shape[0], u.shape[0]
    block = block_length(int(batch), int(order), int(rows // batch), u.element_size())
    starts = u.new_empty(-(-rows // (block * batch)), batch, 2 * order)
    kept = min(rows, block * batch * states_kept(order, u.shape[1], starts.shape[0]))
    return u.new_empty(rows, system[4].shape[0]), starts, u.new_empty(kept, 2 * order)


@_chunked_backward.register_fake
def _chunked_backward_shapes(*arguments: Any) -> list[Tensor]:
    _, *system, u, _, _, _, _ = arguments
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (*system, u) if t is not None]


def _store(ctx: Any, inputs: tuple[Any, ...], output: _Made) -> None:
    *tensors, ctx.batch, ctx.compiled = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *system, u, starts, kept = ctx.saved_tensors
    grads = iter(_chunked_backward(grad, *system, u, ctx.batch, ctx.compiled, starts, kept))
    return *(None if t is None else next(grads) for t in (*system, u)), None, None


_chunked.register_autograd(_gradients, setup_context=_store)
