"""A bank of single-input single-output systems in blocks of time: matrix products, and a state between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.bank_response import doubled_powers, pairs
from compressm.ops.derivative import written_out
from compressm.ops.precision import nothing
from compressm.ops.writing import write

_BLOCK = 32
_FEW = 8  # states of a channel up to which blocks were the faster form on a CPU, by a third to a half


def blocks_are_faster(batch: int, length: int, order: int) -> bool:
    """Whether blocks beat the convolution: for few states, and enough rows to fill the products."""
    return order <= _FEW and batch * length >= 16 * _BLOCK


def bank_blocked(nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, u: Tensor) -> Tensor:
    """`bank_lti` without feedthrough in blocks of T steps; the same shapes.

    Inside a block the output is a Toeplitz matrix of the impulse response times the inputs. Between blocks the state
    is carried by x' = lambda^T x + sum_j lambda^{T-1-j} u_j, and enters the outputs as Re(w lambda^{t+1} x). All are
    matrix products for each channel, but for the recurrence over the L / T blocks.
    """
    batch, length, width = u.shape
    if u.numel() == 0 or nu.numel() == 0:
        return nothing(nu, theta, w_re, w_im, u, shape=(batch, length, width))
    block = min(_BLOCK, length)
    blocks = -(-length // block)
    x = torch.nn.functional.pad(u.permute(2, 0, 1), (0, blocks * block - length)).reshape(width, -1, block)
    power: Tensor = _Powers.apply(nu, theta, block + 1, w_re.dtype)  # (H, T + 1, N)
    weighted = power * torch.complex(w_re, w_im)[:, None]
    kernel = weighted[:, :-1].real.sum(-1)  # (H, T)
    toeplitz = torch.nn.functional.pad(kernel, (block - 1, 0)).unfold(1, block, 1).flip(1)  # (H, input, output)
    drive = torch.bmm(x, pairs(power[:, :-1].flip(1)))
    states = torch.view_as_complex(drive.view(width, batch, blocks, -1, 2))
    starts: Tensor = _Scan.apply(states, power[:, -1])
    readout = pairs(weighted[:, 1:].conj().resolve_conj())  # (H, T, 2 N)
    y = torch.baddbmm(torch.bmm(x, toeplitz), pairs(starts).flatten(1, 2), readout.mT)
    return y.view(width, batch, blocks * block)[..., :length].permute(1, 2, 0)


class _Powers(torch.autograd.Function):
    """exp((-nu + i theta) k) for k < count, (H, count, N)."""

    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        power = doubled_powers(nu, theta, count, dtype)
        ctx.save_for_backward(power)
        ctx.dtypes = nu.dtype, theta.dtype
        return power

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (power,) = ctx.saved_tensors
        steps = torch.arange(power.shape[1], device=grad.device, dtype=power.real.dtype)[:, None]
        grad_log = (power.conj() * grad * steps).sum(1)
        nu_type, theta_type = ctx.dtypes
        return -grad_log.real.to(nu_type), grad_log.imag.to(theta_type), None, None


class _Scan(torch.autograd.Function):
    """The states (H, batch, Q, N) at the start of each block: s_0 = 0, s_{q+1} = a s_q + z_q, for a (H, N)."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, a: Tensor) -> Tensor:
        starts = torch.empty_like(drive)
        starts[:, :, 0] = 0
        for q in range(1, drive.shape[2]):
            write(starts[:, :, q], torch.addcmul, drive[:, :, q - 1], a[:, None], starts[:, :, q - 1])
        ctx.save_for_backward(starts, a)
        return starts

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        starts, a = ctx.saved_tensors
        back = a.conj_physical()[:, None]
        ahead = torch.empty_like(starts)  # at q the gradient of s_{q+1}, which is that of z_q
        ahead[:, :, -1] = 0
        for q in reversed(range(starts.shape[2] - 1)):
            write(ahead[:, :, q], torch.addcmul, grad[:, :, q + 1], back, ahead[:, :, q + 1])
        grad_a = (starts.conj() * ahead).sum((1, 2))
        return ahead, grad_a
