"""The competitor: an LRU's recurrence as a log-depth associative scan in plain torch, written as well as we can.

The scan of x_k = lambda x_{k-1} + v_k with the associative rule (a, v) o (b, w) = (a b, b v + w) pairs neighbours,
scans the pairs, and fills the gaps: 2 log2(L) levels. Because lambda does not change with time, the products a b are
powers lambda^(2^level), computed once in double precision, and only the values are scanned: in place, on complex64,
with time as the leading dimension, so that every level is one fused multiply-add over long contiguous rows. The
backward pass is written out: the adjoint is the same scan with conj(lambda) towards earlier times. Drive and readout
are single real matrix products on interleaved real and imaginary parts, without copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.layers import LRU
from compressm.layers.layout import Layout

_BLOCK = 8  # steps of the pole's gradient summed at a time, while they are in cache


def _levels(pole: Tensor, length: int) -> list[tuple[int, Tensor]]:
    """(stride, pole^stride) for strides 1, 2, 4, ... below `length`."""
    exact, levels, stride = pole.to(torch.complex128), [], 1
    while stride < length:
        levels.append((stride, exact.to(pole.dtype)))
        exact, stride = exact * exact, 2 * stride
    return levels


def scan_(x: Tensor, pole: Tensor) -> Tensor:
    """In place on x (L, batch, N): x[k] += pole x[k-1] for k = 1, 2, ... L - 1."""
    length = x.shape[0]
    levels = _levels(pole, length)
    for stride, power in levels:  # up: each pair's later half takes in the earlier
        later = x[2 * stride - 1 :: 2 * stride]
        later.addcmul_(power, x[stride - 1 :: 2 * stride][: later.shape[0]])
    for stride, power in reversed(levels):  # down: the halves in between take in the finished one before them
        later = x[3 * stride - 1 :: 2 * stride]
        later.addcmul_(power, x[2 * stride - 1 :: 2 * stride][: later.shape[0]])
    return x


def reverse_scan_(x: Tensor, pole: Tensor) -> Tensor:
    """In place on x (L, batch, N): x[k] += pole x[k+1] for k = L - 2, ... 1, 0."""
    length = x.shape[0]
    levels = _levels(pole, length)
    for stride, power in levels:
        earlier = x[length % (2 * stride) : max(0, length - 2 * stride + 1) : 2 * stride]
        earlier.addcmul_(power, x[length % (2 * stride) + stride :: 2 * stride][: earlier.shape[0]])
    for stride, power in reversed(levels):
        first = (length - stride) % (2 * stride)
        earlier = x[first : max(0, length - 3 * stride + 1) : 2 * stride]
        earlier.addcmul_(power, x[first + stride :: 2 * stride][: earlier.shape[0]])
    return x


class _Scanned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pole_re: Tensor, pole_im: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
        pole = torch.complex(pole_re, pole_im)
        u = u.transpose(0, 1).contiguous()
        x = scan_(torch.view_as_complex((u @ b.mT).unflatten(-1, (-1, 2))), pole)
        ctx.save_for_backward(pole, b, c, u, x)
        return (torch.view_as_real(x).flatten(-2) @ c.mT).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        pole, b, c, u, x = ctx.saved_tensors
        grad = grad.transpose(0, 1).contiguous()
        g = torch.view_as_complex((grad @ c).unflatten(-1, (-1, 2)))
        reverse_scan_(g, pole.conj_physical())
        grad_pole = torch.zeros_like(pole)
        for k in range(1, x.shape[0], _BLOCK):
            later = g[k : k + _BLOCK]
            grad_pole += (later * x[k - 1 : k - 1 + later.shape[0]].conj()).sum((0, 1))
        flat_g, flat_x = torch.view_as_real(g).flatten(-2), torch.view_as_real(x).flatten(-2)
        grad_c = grad.flatten(0, 1).mT @ flat_x.flatten(0, 1)
        grad_b = flat_g.flatten(0, 1).mT @ u.flatten(0, 1)
        return grad_pole.real, grad_pole.imag, grad_b, grad_c, (flat_g @ b).transpose(0, 1)


class ScanLRU(LRU):
    """The LRU, its recurrence computed by the scan."""

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """As LRU.forward, for unpadded input."""
        if mask is not None:
            raise ValueError("The benchmark's scan takes no mask.")
        pole = torch.polar(torch.exp(-self.nu_log.double().exp()), self.theta_log.double().exp()).to(torch.complex64)
        gamma = self.gamma_log.exp()[:, None]
        b = torch.stack([gamma * self.B_re, gamma * self.B_im], dim=1).flatten(0, 1)
        c = torch.stack([self.C_re, -self.C_im], dim=2).flatten(1)
        return torch.addcmul(_Scanned.apply(pole.real, pole.imag, b, c, u), u, self.D)

    def layout(self, batch: int, length: int) -> Layout:
        """Time first: the scan's rows."""
        return Layout.TIME
