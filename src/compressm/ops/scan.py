"""A linear recurrence with one matrix for all steps, in a logarithm of the steps' matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressm.ops.precision import precise

_SEQUENTIAL = 8  # no more steps than this are taken one after the other


def matrix_scan(drive: Tensor, a: Tensor) -> Tensor:
    """The states s_q with s_0 = 0 and s_{q+1} = A s_q + z_q for the drive z (batch, Q, N) and A (N, N); as `drive`.

    Pairs of steps are joined into ever larger groups, then the groups are filled in from the coarse to the fine (Brent
    and Kung 1982): twice the multiplications of the plain loop in 2 log2(Q) large products instead of Q small ones.
    Powers of A are squared in float64.
    """
    if drive.numel() == 0:
        return drive
    states: Tensor = _MatrixScan.apply(drive, a)
    return states


class _MatrixScan(torch.autograd.Function):
    """With g the gradients of the states, h_q = g_q + A^T h_{q+1} are those of their sums: the same scan in reverse."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, a: Tensor) -> Tensor:
        powers = _powers(a, drive.shape[1])
        room = _room(drive, len(powers))
        room[:, 1 : drive.shape[1]] = drive[:, :-1]
        _accumulate_(room, [power.mT for power in powers])
        states = room[:, : drive.shape[1]]
        ctx.save_for_backward(states, a, *powers)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        states, a, *powers = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
                ahead = matrix_scan(grad.flip(1), a.mT).flip(1)
            else:
                steps = grad.shape[1]
                sums = _room(grad, len(powers))
                sums[:, 1:steps] = grad[:, 1:].flip(1)  # s_0 does not depend on anything
                _accumulate_(sums, powers)
                ahead = torch.cat([sums[:, 1:steps].flip(1), sums[:, :1]], 1)  # at q the gradient of s_{q+1}
            return ahead, ahead.flatten(0, 1).mT @ states.flatten(0, 1)


def _powers(a: Tensor, steps: int) -> list[Tensor]:
    """A, A^2, A^4, .. up to the group of steps that leaves a few groups."""
    powers = [precise(a)]
    while steps > _SEQUENTIAL << (len(powers) - 1):
        powers.append(powers[-1] @ powers[-1])
    return [power.to(a.dtype) for power in powers]


def _room(like: Tensor, levels: int) -> Tensor:
    """Zeros (batch, Q', N) for whole groups and at least one step more than `like` has."""
    group = 1 << (levels - 1)
    return like.new_zeros(like.shape[0], (like.shape[1] // group + 1) * group, like.shape[2])


def _accumulate_(z: Tensor, powers: list[Tensor]) -> None:
    """z_q += z_{q-1} M in place for z (batch, Q, N) and M^(2^k) in `powers`. The last z_q is lost: it becomes zero.

    Sequences follow each other in memory. What would flow from one into the next comes from that zero.
    """
    batch, steps, order = z.shape
    for level, power in enumerate(powers[:-1]):
        group = z.view(-1, order << (level + 1))
        middle = order << level
        group[:, -order:].addmm_(group[:, middle - order : middle], power)
    last = z.view(batch, -1, order << (len(powers) - 1))[..., -order:]
    for before, after in zip(last.unbind(1)[:-2], last.unbind(1)[1:-1], strict=True):
        after.addmm_(before, powers[-1])
    z[:, steps - 1] = 0
    for level in reversed(range(len(powers) - 1)):
        group = z.view(-1, order << (level + 1))
        middle = order << level
        group[1:, middle - order : middle].addmm_(group[:-1, -order:], powers[level])
