"""x[t] = pole x[t-1] + v[t] inside one block of time, in place, in whichever order of operations is cheapest."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from compressm.ops.precision import precise

_WIDE = 8192  # elements of one step from which on a call's work outweighs its overhead


class Recurrence:
    """The recurrence of N poles exp(-nu + i theta) over blocks (T, batch, N) of complex numbers, and its adjoint.

    Where one step is wide it runs step by step. Otherwise it runs in 2 log2(T) calls (Brent and Kung 1982): pairs
    are joined into ever larger groups, then the groups are filled in from the coarse to the fine. That doubles the
    operations, all of them in cache, and saves T calls.

    Rounded poles lose about T * eps over T steps. `defect` is what they lose: adding it times the state at the end
    of each block leaves one rounding per block instead of one per step, which is what long memories need.
    """

    def __init__(self, nu: Tensor, theta: Tensor, batch: int, block: int, dtype: torch.dtype) -> None:
        self._nu, self._theta = precise(nu.detach()), precise(theta.detach())
        self._wide = batch * nu.shape[0] >= _WIDE
        strides, stride = [1], 2
        while stride < block and not self._wide:
            strides.append(stride)
            stride *= 2
        self._powers = [self._power(stride).to(dtype.to_complex()) for stride in strides]
        rows = [power.expand(batch, -1).contiguous() for power in self._powers]  # long rows for elementwise calls
        self._levels = list(zip(strides, rows, [row.conj_physical() for row in rows], strict=True))

    def forward_(self, x: Tensor, start: Tensor) -> Tensor:
        """x[t] += pole * x[t-1] with x[-1] = start (batch, N)."""
        x[0].addcmul_(self._levels[0][1], start)
        if self._wide:
            steps = x.unbind(0)
            for before, after in pairwise(steps):
                after.addcmul_(self._levels[0][1], before)
            return x
        for stride, power, _ in self._levels:
            after = x[2 * stride - 1 :: 2 * stride]
            after.addcmul_(power, x[stride - 1 :: 2 * stride][: len(after)])
        for stride, power, _ in reversed(self._levels):
            after = x[3 * stride - 1 :: 2 * stride]
            after.addcmul_(power, x[2 * stride - 1 :: 2 * stride][: len(after)])
        return x

    def backward_(self, g: Tensor, ahead: Tensor) -> Tensor:
        """g[t] += conj(pole) * g[t+1], with `ahead` (batch, N) added to the last g."""
        length = len(g)
        g[-1] += ahead
        if self._wide:
            steps = g.unbind(0)[::-1]
            for after, before in pairwise(steps):
                before.addcmul_(self._levels[0][2], after)
            return g
        for stride, _, power in self._levels:
            first = length % (2 * stride)
            before = g[first : max(0, length - 2 * stride + 1) : 2 * stride]
            before.addcmul_(power, g[first + stride :: 2 * stride][: len(before)])
        for stride, _, power in reversed(self._levels):
            first = (length - stride) % (2 * stride)
            before = g[first : max(0, length - 3 * stride + 1) : 2 * stride]
            before.addcmul_(power, g[first + stride :: 2 * stride][: len(before)])
        return g

    def conjugate(self, state: Tensor) -> Tensor:
        """conj(pole) * state."""
        return self._levels[0][2] * state

    def defect(self, steps: int) -> Tensor:
        """pole^steps minus what the rounded poles make of it over a whole block of `steps`, (N,)."""
        exact = self._power(steps)
        rounded = self._powers[0].to(exact.dtype)
        if self._wide:
            made = torch.polar(rounded.abs() ** steps, rounded.angle() * steps)
        else:
            made = rounded
            for power in self._powers:
                made = made * power
        return (exact - made).to(self._powers[0].dtype)

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of nu and theta from that of the poles (N,)."""
        product = grad * self._power(1).conj()
        return -product.real, product.imag

    def _power(self, steps: int) -> Tensor:
        return torch.polar(torch.exp(-self._nu * steps), self._theta * steps)
