"""A diagonal recurrence over blocks of time, forward and backward: matrix products inside, the state carried between.

Signals are matrices whose rows are steps, then sequences (L * batch, channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.ops.memory import reusable
from compressm.ops.products import times
from compressm.ops.recurrence import CompiledRecurrence, Recurrence, TorchRecurrence
from compressm.ops.remaking import remake

_BLOCK_BYTES = 1 << 20  # states of one block: about what a core's second-level cache holds
_SHORTEST, _LONGEST = 16, 128


def block_length(batch: int, order: int, length: int, itemsize: int) -> int:
    """Steps in a block, such that its states `(T, batch, N)` stay in cache: a power of two, or the whole `length`."""
    fitting = _BLOCK_BYTES // max(1, 2 * itemsize * batch * order)
    block = max(_SHORTEST, min(_LONGEST, 1 << max(0, fitting.bit_length() - 1)))
    return max(1, min(length, block))


def states_kept(order: int, inputs: int, blocks: int) -> int:
    """How many of the blocks, the first ones, store states for the backward pass: half as many numbers as inputs."""
    return min(blocks, blocks * inputs // max(1, 4 * order))


@dataclass(frozen=True)
class Blocks:
    """One call's system, and how its time is cut; `compiled` says whether kernels run its recurrence.

    nu, theta (N,); b_re, b_im (N, H_in); c_re, c_im (H_out, N); d (H,) or None; `block` steps in a block.
    """

    nu: Tensor
    theta: Tensor
    b_re: Tensor
    b_im: Tensor
    c_re: Tensor
    c_im: Tensor
    d: Tensor | None
    batch: int
    block: int
    compiled: bool

    def forward(self, u: Tensor, keep: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The output (L * batch, H_out), the states before each block, and all states of the first `keep` blocks."""
        b, c, rows = self._drive(), self._readout(), self.block * self.batch
        recurrence = self._recurrence(u.dtype)
        y = reusable((len(u), c.shape[0]), u)
        state = u.new_zeros(self.batch, b.shape[0])
        starts: list[Tensor] = []
        kept: list[Tensor] = []  # in pieces, which fit into the gaps of freed memory
        for part, y_part in zip(u.split(rows), y.split(rows), strict=True):
            x = times(part, b)
            starts.append(state)
            state = recurrence.advance_(x, state)
            _add_scaled(times(x, c), part, self.d, y_part)
            if len(kept) < keep:
                kept.append(x)
        return y, torch.stack(starts), kept

    def backward(
        self,
        grad: Tensor,
        u: Tensor,
        starts: Tensor,
        kept: Sequence[Tensor],
        mean: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """The gradients of nu, theta, b_re, b_im, c_re, c_im, d and the input for that of the output.

        The input is `remake(u, mean, scale)`. States that were not kept are computed anew.
        """
        b, c, rows = self._drive(), self._readout(), self.block * self.batch
        recurrence = self._recurrence(u.dtype)
        grad_b, grad_c, grad_u = torch.zeros_like(b), torch.zeros_like(c), reusable(u.shape, u)
        grad_d = None if self.d is None else torch.zeros_like(self.d)
        ahead = torch.zeros_like(starts[0])
        parts = [t.split(rows) for t in (u, grad, grad_u)]
        for index in reversed(range(len(starts))):
            part, g_part, u_part = (t[index] for t in parts)
            part = remake(part, mean, scale)
            if index < len(kept):
                x = kept[index]
            else:
                x = times(part, b)
                recurrence.advance_(x, starts[index])
            g = times(g_part, c.mT)
            ahead = recurrence.retreat_(g, x, starts[index], ahead)
            grad_c.addmm_(g_part.mT, x)
            grad_b.addmm_(g.mT, part)
            _add_scaled(times(g, b.mT), g_part, self.d, u_part)
            if grad_d is not None:
                grad_d += torch.linalg.vecdot(g_part, part, dim=0)
        grad_nu, grad_theta = recurrence.gradient()
        side, order = (0 if self.compiled else 1), self.nu.shape[0]
        pairs = (2, order) if self.compiled else (order, 2)
        b_re, b_im = grad_b.view(*pairs, u.shape[1]).unbind(side)
        c_re, c_im = grad_c.view(len(c), *pairs).unbind(side + 1)
        poles = grad_nu.to(self.nu.dtype), grad_theta.to(self.theta.dtype)
        return *poles, b_re, b_im, c_re, c_im.neg(), grad_d, grad_u

    def _drive(self) -> Tensor:
        """The real matrix (2 N, H_in) of B u, [re (N) | im (N)] in a row of states, or pairs re, im."""
        both = torch.stack([self.b_re, self.b_im], dim=0 if self.compiled else 1)
        return both.reshape(2 * self.b_re.shape[0], self.b_re.shape[1])

    def _readout(self) -> Tensor:
        """The real matrix (H_out, 2 N) of y = Re(C x) for a row of states."""
        both = torch.stack([self.c_re, -self.c_im], dim=1 if self.compiled else 2)
        return both.reshape(self.c_re.shape[0], 2 * self.c_re.shape[1])

    def _recurrence(self, dtype: torch.dtype) -> Recurrence:
        if self.compiled:
            return CompiledRecurrence(self.nu, self.theta, self.batch, self.block)
        return TorchRecurrence(self.nu, self.theta, self.batch, self.block, dtype)


def _add_scaled(y: Tensor, u: Tensor, d: Tensor | None, out: Tensor) -> None:
    """out = y + d u."""
    if d is None:
        out.copy_(y)
    else:
        torch.addcmul(y, u, d, out=out)
