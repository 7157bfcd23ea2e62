"""A diagonal recurrence in blocks of time: matrix products inside a block, the state carried between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.ops.recurrence import Recurrence

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
    order = nu.shape[0]
    b = torch.stack([b_re, b_im], dim=1).reshape(2 * order, u.shape[2])  # rows re, im, re, im, ...: complex in memory
    c = torch.stack([c_re, -c_im], dim=2).reshape(c_re.shape[0], 2 * order)
    y: Tensor = _Chunked.apply(nu, theta, b, c, u)
    return y


def _complex(x: Tensor, steps: int) -> Tensor:
    """(T * batch, 2 N) real as a (T, batch, N) complex view."""
    return torch.view_as_complex(x.view(steps, x.shape[0] // steps, x.shape[1] // 2, 2))


def _real(x: Tensor) -> Tensor:
    """(T, batch, N) complex as a (T * batch, 2 N) real view."""
    return torch.view_as_real(x).flatten(-2).flatten(0, 1)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
        batch, length, inputs = u.shape
        order = nu.shape[0]
        block = block_length(batch, order, length, u.element_size())
        u = u.transpose(0, 1).reshape(length * batch, inputs)  # time first: one block's rows lie together
        recurrence = Recurrence(nu, theta, batch, block, u.dtype)
        defect = recurrence.defect(block)
        y = u.new_empty(length * batch, c.shape[0])
        state = torch.zeros(batch, order, dtype=defect.dtype, device=u.device)
        starts: list[Tensor] = []
        kept: list[Tensor] = []
        for part, y_part in zip(u.split(block * batch), y.split(block * batch), strict=True):
            x = recurrence.forward_(_complex(part @ b.mT, len(part) // batch), state)
            torch.mm(_real(x), c.mT, out=y_part)
            starts.append(state)
            state = torch.addcmul(x[-1], defect, state)
            if order <= inputs:
                kept.append(x)
        ctx.save_for_backward(nu, theta, b, c, u, torch.stack(starts), *kept)
        ctx.block = block
        return y.view(length, batch, c.shape[0]).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nu, theta, b, c, u, starts, *kept = ctx.saved_tensors
        batch, length, outputs = grad.shape
        block: int = ctx.block
        grad = grad.transpose(0, 1).reshape(length * batch, outputs)
        recurrence = Recurrence(nu, theta, batch, block, u.dtype)
        conjugate_defect = recurrence.defect(block).conj_physical()
        grad_b, grad_c, grad_u = torch.zeros_like(b), torch.zeros_like(c), torch.empty_like(u)
        grad_pole = torch.zeros_like(conjugate_defect)
        ahead = torch.zeros_like(starts[0])
        rows = [t.split(block * batch) for t in (u, grad, grad_u)]
        for index in reversed(range(len(starts))):
            part, g_part, u_part = (t[index] for t in rows)
            steps = len(part) // batch
            x = kept[index] if kept else recurrence.forward_(_complex(part @ b.mT, steps), starts[index])
            g = recurrence.backward_(_complex(g_part @ c, steps), ahead)
            grad_pole += (g[0] * starts[index].conj()).sum(0) + (g[1:] * x[:-1].conj()).sum((0, 1))
            ahead = recurrence.conjugate(g[0]).addcmul_(conjugate_defect, ahead)
            grad_c.addmm_(g_part.mT, _real(x))
            grad_b.addmm_(_real(g).mT, part)
            torch.mm(_real(g), b, out=u_part)
        grad_nu, grad_theta = recurrence.gradient(grad_pole)
        grad_u = grad_u.view(length, batch, u.shape[1]).transpose(0, 1)
        return grad_nu.to(nu.dtype), grad_theta.to(theta.dtype), grad_b, grad_c, grad_u
