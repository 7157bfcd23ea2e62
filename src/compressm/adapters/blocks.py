"""The states that inputs lead through, a block of time steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.adapters.holding import single
from compressm.linalg.recurrence import scan_
from compressm.linalg.statespace import StateSpace

_ROWS = 2048  # samples of which products are formed at once, at most
_NUMBERS = 2**23  # numbers held at once, unless one block has more


@dataclass(frozen=True, eq=False)
class Blocks:
    """States at the first of the last q steps of blocks of time, and what comes in after it, in single precision.

    states `(*h, samples, n)`; inputs `(*h, samples, q - 1, m)`; counted `(samples, q)`: the steps that belong to the
    data. Others are padding: where `still` (samples, q) the state is zero there all the same.
    """

    states: Tensor
    inputs: Tensor
    counted: Tensor
    still: Tensor


class Leap:
    """What takes x_k to x_{k+p} = x_k power + (u_{k+1} .. u_{k+p}) reach, for rows x and u and p `steps`."""

    def __init__(self, system: StateSpace, steps: int, device: torch.device) -> None:
        """reach is (*h, p m, n), the rows of A^{p-1} B, .., A B, B; power is A^p, as (*h, 1, n) for diagonal A."""
        a, columns = (system.a.unsqueeze(-1) if system.is_diagonal else system.a), [system.b]
        for _ in range(steps - 1):
            columns.append(a * columns[-1] if system.is_diagonal else a.to(columns[-1].dtype) @ columns[-1])
        power = (system.a**steps).unsqueeze(-2) if system.is_diagonal else torch.linalg.matrix_power(a, steps).mT
        dtype = _single(system)
        self._diagonal = system.is_diagonal
        reach = torch.cat(columns[::-1], -1).mT.to(device, dtype).contiguous()
        self._complex, self._power = reach.is_complex(), power.to(device, dtype)
        self._reach = torch.view_as_real(reach).flatten(-2) if reach.is_complex() else reach

    def drive(self, u: Tensor) -> Tensor:
        """(*h, T, batch, n): what inputs (*h, T, batch, p, m) add; by products of real numbers where they are real."""
        if u.is_complex():
            return self.drive(u.real) + 1j * self.drive(u.imag)
        driven = u.flatten(-2).flatten(-3, -2) @ self._reach
        driven = torch.view_as_complex(driven.unflatten(-1, (-1, 2))) if self._complex else driven
        return driven.unflatten(-2, u.shape[-4:-2])

    def move(self, x: Tensor, drive: Tensor) -> Tensor:
        """The states p steps later."""
        return torch.addcmul(drive, x, self._power) if self._diagonal else drive + x @ self._power

    def moves_(self, x: Tensor, drives: Tensor, second: Leap | None, follow: Tensor | None) -> tuple[Tensor, Tensor]:
        """What many moves from x lead to, each followed by one of `second` if there is one.

        `drives` and `follow` are (*h, T, batch, n) and are written over. Returns all states before the second moves
        (*h, T, batch, n), and the last state (*h, batch, n).
        """
        if second is None or follow is None:
            states = scan_(drives, self._power, x) if self._diagonal else self._one_by_one_(x, drives)
            return states, states.select(-3, -1)
        if not self._diagonal:
            for come, after in zip(drives.unbind(-3), follow.unbind(-3), strict=True):
                come += x @ self._power
                x = second.move(come, after)
            return drives, x
        ends = scan_(follow.addcmul_(drives, second._power.unsqueeze(-3)), self._power * second._power, x)
        drives.select(-3, 0).addcmul_(x, self._power)
        drives[..., 1:, :, :].addcmul_(ends[..., :-1, :, :], self._power.unsqueeze(-3))
        return drives, ends.select(-3, -1)

    def _one_by_one_(self, x: Tensor, drives: Tensor) -> Tensor:
        for come in drives.unbind(-3):
            come += x @ self._power
            x = come
        return drives


def state_blocks(system: StateSpace, u: Tensor, mask: Tensor | None, stride: int, last: int) -> Iterator[Blocks]:
    """Blocks of `stride` steps from a zero state, the last of which ends with the data; `last` of them are looked at.

    `u` (batch, L, h m) is zero where `mask` (batch, L) is False.
    """
    device = u.device if u.device.type == "cuda" else torch.device("cpu")
    batch, length, _ = u.shape
    if length == 0:
        return
    h, dims = system.batch_shape, len(system.batch_shape)
    count = -(-length // stride)
    front = count * stride - length
    data = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask.to(device).bool()
    data = torch.nn.functional.pad(data, (front, 0))
    still = ~data.cummax(1).values  # nothing came in yet
    counted, still = (t.unflatten(1, (count, stride))[..., stride - last :].movedim(1, 0) for t in (data, still))
    u = (torch.nn.functional.pad(u.to(device), (0, 0, front, 0)) if front else u.to(device)).unflatten(
        1, (count, stride)
    )
    u = u.unflatten(-1, (*h, system.inputs)).movedim((1, 0, 2, -1), (dims, dims + 1, dims + 2, dims + 3))
    first = Leap(system, stride - last + 1, device)
    second = Leap(system, last - 1, device) if last > 1 else None
    x = torch.zeros(*h, batch, system.order, dtype=_single(system), device=device)
    held = max(1, x.numel(), h.numel() * batch * stride * system.inputs)
    many = max(1, min(-(-_ROWS // max(1, batch)), _NUMBERS // held))
    for start in range(0, count, many):
        part = u[(slice(None),) * dims + (slice(start, start + many),)]  # (*h, T, batch, p, m)
        ahead, seen = part[..., : stride - last + 1, :], part[..., stride - last + 1 :, :]
        states, x = first.moves_(x, first.drive(ahead), second, None if second is None else second.drive(seen))
        span = slice(start, start + many)
        yield Blocks(
            states.flatten(-3, -2),
            single(seen.flatten(-4, -3)),
            counted[span].flatten(0, 1),
            still[span].flatten(0, 1),
        )


def _single(system: StateSpace) -> torch.dtype:
    return torch.complex64 if system.is_complex else torch.float32
