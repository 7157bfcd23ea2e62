"""A diagonal linear recurrence over time, in place."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 2**11  # numbers of one step up to which calls cost more than their work
_LONG = 64  # steps from which blocks are worth it


def scan_(drive: Tensor, power: Tensor, start: Tensor) -> Tensor:
    """x_k = power * x_{k-1} + drive_k, from x_0 = `start`, written into `drive` `(*h, T, batch, n)`.

    `power` is `(*h, 1, n)` and `start` `(*h, batch, n)`. Steps that are small are made in about sqrt(T) blocks of time
    at once: first within each block from zero, then the state before the block is added, times powers of `power`.
    """
    steps = drive.shape[-3]
    size = int(steps**0.5)
    if start.numel() > _SMALL or steps < _LONG:
        x = start
        for part in drive.unbind(-3):
            x = part.addcmul_(x, power)
        return drive
    blocks = steps // size
    whole, rest = drive.split([blocks * size, steps - blocks * size], -3)
    whole = whole.unflatten(-3, (blocks, size))
    x = whole.select(-3, 0)
    for part in whole.unbind(-3)[1:]:
        x = part.addcmul_(x, power.unsqueeze(-3))
    exact = power.to(torch.complex128 if power.is_complex() else torch.float64).unsqueeze(-3)
    powers = exact.expand(*exact.shape[:-3], size, -1, -1).cumprod(-3).to(power.dtype)
    before, last = [start], powers.select(-3, -1)
    for end in whole.select(-3, size - 1).unbind(-3):
        before.append(torch.addcmul(end, before[-1], last))
    whole.addcmul_(torch.stack(before[:-1], -3).unsqueeze(-3), powers.unsqueeze(-4))
    x = before[-1]
    for part in rest.unbind(-3):
        x = part.addcmul_(x, power)
    return drive
