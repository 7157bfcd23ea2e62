"""A diagonal recurrence in blocks of time: matrix products inside a block, the state carried between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.ops.precision import precise

_BLOCK_BYTES = 1 << 20  # states of one block: about what a core's second-level cache holds
_SHORTEST, _LONGEST = 16, 128


def block_length(batch: int, order: int, length: int, itemsize: int) -> int:
    """Steps in a block, such that the block's states `(T, batch, N)` stay in cache; at most `length`."""
    fitting = _BLOCK_BYTES // max(1, 2 * itemsize * batch * order)
    return max(1, min(length, max(_SHORTEST, min(_LONGEST, fitting))))


def diagonal_chunked(
    nu: Tensor, theta: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, u: Tensor
) -> Tensor:
    """`diagonal_reference` in blocks of time; same shapes.

    Memory beside input and output: the states at block boundaries, L / T of all states.
    """
    if u.shape[0] == 0 or u.shape[1] == 0:
        return u.new_zeros(u.shape[0], u.shape[1], c_re.shape[0]) + 0 * u.sum()
    order = nu.shape[0]
    b = torch.stack([b_re, b_im], dim=1).reshape(2 * order, u.shape[2])  # rows re, im, re, im, ...: complex in memory
    c = torch.stack([c_re, -c_im], dim=2).reshape(c_re.shape[0], 2 * order)
    y: Tensor = _Chunked.apply(nu, theta, b, c, u)
    return y


class _Poles:
    """The poles in working precision, and what working precision loses over one block.

    A rounded pole to the power T differs from the rounded power by about T * eps. Adding `defect` * state at the end
    of each block leaves one rounding per block instead of one per step, which is what long memories need.
    """

    def __init__(self, nu: Tensor, theta: Tensor, batch: int, dtype: torch.dtype) -> None:
        self.nu, self.theta = precise(nu.detach()), precise(theta.detach())
        self.exact = torch.polar(torch.exp(-self.nu), self.theta)
        self.working = self.exact.to(dtype.to_complex())
        self.rows = self.working.expand(batch, -1).contiguous()  # one flat elementwise call per step

    def defect(self, steps: int) -> Tensor:
        """pole^steps - (rounded pole)^steps, (N,)."""
        exact = torch.polar(torch.exp(-self.nu * steps), self.theta * steps)
        rounded = self.working.to(self.exact.dtype)
        return (exact - torch.polar(rounded.abs() ** steps, rounded.angle() * steps)).to(self.working.dtype)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of nu and theta from that of the poles."""
        product = grad * self.exact.conj()
        return -product.real, product.imag


def _states(part: Tensor, b: Tensor, pole: Tensor, start: Tensor) -> Tensor:
    """States (T, batch, N) of one block: x[t] = pole x[t-1] + B u[t] with x[-1] = start."""
    x = torch.view_as_complex((part @ b.mT).unflatten(-1, (-1, 2)))
    previous = start
    for current in x.unbind(0):
        current.addcmul_(pole, previous)
        previous = current
    return x


def _costates(g_part: Tensor, c: Tensor, conjugate_pole: Tensor, ahead: Tensor) -> Tensor:
    """Gradients (T, batch, N) of one block's states, with `ahead` what reaches the last of them from later blocks."""
    g = torch.view_as_complex((g_part @ c).unflatten(-1, (-1, 2)))
    g[-1] += ahead
    steps = g.unbind(0)
    for index in range(len(steps) - 2, -1, -1):
        steps[index].addcmul_(conjugate_pole, steps[index + 1])
    return g


def _real(x: Tensor) -> Tensor:
    """(T, batch, N) complex as a (T * batch, 2 N) real view."""
    return torch.view_as_real(x).flatten(-2).flatten(0, 1)


class _Chunked(torch.autograd.Function):
    """Keeps the input and the states at block boundaries; the backward pass recomputes the states block by block."""

    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
        batch, length, _ = u.shape
        block = block_length(batch, nu.shape[0], length, u.element_size())
        u = u.transpose(0, 1).contiguous()  # (L, batch, H_in): one step's rows lie together
        poles = _Poles(nu, theta, batch, u.dtype)
        y = u.new_empty(length * batch, c.shape[0])
        state = torch.zeros_like(poles.rows)
        starts = []
        for begin in range(0, length, block):
            part = u[begin : begin + block]
            x = _states(part, b, poles.rows, state)
            torch.mm(_real(x), c.mT, out=y[begin * batch : (begin + len(part)) * batch])
            starts.append(state)
            state = torch.addcmul(x[-1], poles.defect(len(part)), state)
        ctx.save_for_backward(nu, theta, b, c, u, torch.stack(starts))
        ctx.block = block
        return y.view(length, batch, -1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nu, theta, b, c, u, starts = ctx.saved_tensors
        length, batch, inputs = u.shape
        grad = grad.transpose(0, 1).contiguous()
        poles = _Poles(nu, theta, batch, u.dtype)
        conjugate = poles.rows.conj_physical()
        grad_b, grad_c, grad_u = torch.zeros_like(b), torch.zeros_like(c), u.new_empty(length * batch, inputs)
        grad_pole = torch.zeros_like(poles.working)
        ahead = torch.zeros_like(starts[0])
        for index in reversed(range(len(starts))):
            begin = index * ctx.block
            part, g_part = u[begin : begin + ctx.block], grad[begin : begin + ctx.block]
            x = _states(part, b, poles.rows, starts[index])
            g = _costates(g_part, c, conjugate, ahead)
            grad_pole += (g[0] * starts[index].conj()).sum(0) + (g[1:] * x[:-1].conj()).sum((0, 1))
            ahead = (conjugate * g[0]).addcmul_(poles.defect(len(part)).conj(), ahead)
            grad_c.addmm_(g_part.flatten(0, 1).mT, _real(x))
            grad_b.addmm_(_real(g).mT, part.flatten(0, 1))
            torch.mm(_real(g), b, out=grad_u[begin * batch : (begin + len(part)) * batch])
        grad_nu, grad_theta = poles.gradient(grad_pole)
        grad_u = grad_u.view(length, batch, inputs).transpose(0, 1)
        return grad_nu.to(nu.dtype), grad_theta.to(theta.dtype), grad_b, grad_c, grad_u
