"""x[t] = pole x[t-1] + v[t] inside one block of time, in place, and its adjoint: in torch, and compiled.

Rows are steps, then sequences: a block of T steps is a real matrix (T * batch, 2 N).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from compressm.ops.precision import complex_dtype, precise

_WIDE = 8192  # elements of one step from which on a call's work outweighs its overhead


class Recurrence(ABC):
    """The recurrence of N poles exp(-nu + i theta) over blocks of time, and its adjoint.

    Rounded poles lose about T * eps over T steps. The defect is what they lose: adding it times the state at the end
    of each block leaves one rounding per block instead of one per step, which is what long memories need.
    """

    def __init__(self, nu: Tensor, theta: Tensor) -> None:
        self._nu, self._theta = precise(nu.detach()), precise(theta.detach())

    @abstractmethod
    def advance_(self, x: Tensor, start: Tensor) -> Tensor:
        """x[t] += pole x[t-1] with x[-1] = start (batch, 2 N); returns the state that the next block starts from."""

    @abstractmethod
    def retreat_(self, g: Tensor, x: Tensor, start: Tensor, ahead: Tensor) -> Tensor:
        """g[t] += conj(pole) g[t+1] with `ahead` (batch, 2 N) added to the last g; returns that of the block before.

        Takes in the gradient of the poles; x are the block's states, `start` the one before them.
        """

    @abstractmethod
    def pole_gradient(self) -> Tensor:
        """sum_t conj(x[t-1]) g[t] over the blocks so far, (N,) complex."""

    def gradient(self) -> tuple[Tensor, Tensor]:
        """The gradients of nu and theta."""
        product = self.pole_gradient() * self._power(1).conj()
        return -product.real, product.imag

    def _power(self, steps: int) -> Tensor:
        return torch.polar(torch.exp(-self._nu * steps), self._theta * steps)


class CompiledRecurrence(Recurrence):
    """One pass over a block of float32 numbers; a row is [re (N) | im (N)]."""

    def __init__(self, nu: Tensor, theta: Tensor, batch: int, block: int) -> None:
        super().__init__(nu, theta)
        self._pole, self._defect = rounded_poles(self._nu, self._theta, block)
        self._sums = torch.zeros(batch, 2 * nu.shape[0])

    def advance_(self, x: Tensor, start: Tensor) -> Tensor:
        """As Recurrence.advance_."""
        from compressm.ops.kernels import recurrence as compiled

        return compiled.advance_(x, start, self._pole, self._defect)

    def retreat_(self, g: Tensor, x: Tensor, start: Tensor, ahead: Tensor) -> Tensor:
        """As Recurrence.retreat_."""
        from compressm.ops.kernels import recurrence as compiled

        compiled.retreat_(g, x, start, ahead, self._sums, self._pole, self._defect)
        return ahead

    def pole_gradient(self) -> Tensor:
        """As Recurrence.pole_gradient."""
        return torch.complex(*self._sums.sum(0).chunk(2))


class TorchRecurrence(Recurrence):
    """In torch, in whichever order of operations is cheapest; a row is [re, im] (N), complex in memory.

    Where one step is wide it runs step by step. Otherwise it runs in 2 log2(T) calls (Brent and Kung 1982): pairs
    are joined into ever larger groups, then the groups are filled in from the coarse to the fine. That doubles the
    operations, all of them in cache, and saves T calls.
    """

    def __init__(self, nu: Tensor, theta: Tensor, batch: int, block: int, dtype: torch.dtype) -> None:
        super().__init__(nu, theta)
        self._wide, self._batch = batch * nu.shape[0] >= _WIDE, batch
        strides, stride = [1], 2
        while stride < block and not self._wide:
            strides.append(stride)
            stride *= 2
        powers = [self._power(stride).to(complex_dtype(dtype)) for stride in strides]
        rows = [power.expand(batch, -1).contiguous() for power in powers]  # long rows for elementwise calls
        self._levels = list(zip(strides, rows, [row.conj_physical() for row in rows], strict=True))
        self._defect = self._lost(block, powers)
        self._grad = torch.zeros_like(self._defect)

    def advance_(self, x: Tensor, start: Tensor) -> Tensor:
        """As Recurrence.advance_."""
        state, first = self._complex(x), torch.view_as_complex(start.unflatten(1, (-1, 2)))
        state[0].addcmul_(self._levels[0][1], first)
        if self._wide:
            for before, after in pairwise(state.unbind(0)):
                after.addcmul_(self._levels[0][1], before)
        else:
            self._join_forward(state)
        return torch.view_as_real(torch.addcmul(state[-1], self._defect, first)).flatten(1)

    def retreat_(self, g: Tensor, x: Tensor, start: Tensor, ahead: Tensor) -> Tensor:
        """As Recurrence.retreat_."""
        g, state = self._complex(g), self._complex(x)
        first, last = (torch.view_as_complex(t.unflatten(1, (-1, 2))) for t in (start, ahead))
        g[-1] += last
        if self._wide:
            for after, before in pairwise(g.unbind(0)[::-1]):
                before.addcmul_(self._levels[0][2], after)
        else:
            self._join_backward(g)
        self._grad += (g[0] * first.conj()).sum(0) + (g[1:] * state[:-1].conj()).sum((0, 1))
        before = (self._levels[0][2] * g[0]).addcmul_(self._defect.conj_physical(), last)
        return torch.view_as_real(before).flatten(1)

    def pole_gradient(self) -> Tensor:
        """As Recurrence.pole_gradient."""
        return self._grad

    def _complex(self, x: Tensor) -> Tensor:
        """(T * batch, 2 N) real as a (T, batch, N) complex view."""
        return torch.view_as_complex(x.view(len(x) // self._batch, self._batch, x.shape[1] // 2, 2))

    def _join_forward(self, x: Tensor) -> None:
        for stride, power, _ in self._levels:
            after = x[2 * stride - 1 :: 2 * stride]
            after.addcmul_(power, x[stride - 1 :: 2 * stride][: len(after)])
        for stride, power, _ in reversed(self._levels):
            after = x[3 * stride - 1 :: 2 * stride]
            after.addcmul_(power, x[2 * stride - 1 :: 2 * stride][: len(after)])

    def _join_backward(self, g: Tensor) -> None:
        length = len(g)
        for stride, _, power in self._levels:
            first = length % (2 * stride)
            before = g[first : max(0, length - 2 * stride + 1) : 2 * stride]
            before.addcmul_(power, g[first + stride :: 2 * stride][: len(before)])
        for stride, _, power in reversed(self._levels):
            first = (length - stride) % (2 * stride)
            before = g[first : max(0, length - 3 * stride + 1) : 2 * stride]
            before.addcmul_(power, g[first + stride :: 2 * stride][: len(before)])

    def _lost(self, steps: int, powers: list[Tensor]) -> Tensor:
        """pole^steps minus what the rounded poles make of it over a whole block of `steps`, (N,)."""
        exact = self._power(steps)
        rounded = powers[0].to(exact.dtype)
        if self._wide:
            made = torch.polar(rounded.abs() ** steps, rounded.angle() * steps)
        else:
            made = rounded
            for power in powers:
                made = made * power
        return (exact - made).to(powers[0].dtype)


def rounded_poles(nu: Tensor, theta: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The poles exp(-nu + i theta) rounded to single precision, and what rounding loses over `block` steps.

    Both are [re (N) | im (N)]; nu and theta in float64.
    """
    pole = torch.polar(torch.exp(-nu), theta).to(torch.complex64)
    wide = pole.to(torch.complex128)
    made = torch.polar(wide.abs() ** block, wide.angle() * block)
    defect = (torch.polar(torch.exp(-nu * block), theta * block) - made).to(torch.complex64)
    return torch.cat([pole.real, pole.imag]), torch.cat([defect.real, defect.imag])
