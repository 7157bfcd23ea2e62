"""Orthogonal matching pursuit: which groups of states explain most of an output, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

RCOND = 1e-7  # combinations of kept states that hardly move are not used, lest weights become huge


class Pursuit:
    """Groups whose rows span most of `target`, one at a time (Pati et al. 1993); found as far as they are asked for.

    `target` `(*h, p, l)`; `bases` `(*h, G, q, l)`, the q rows that group g adds. After each choice the rows chosen are
    projected out of all others, so that the gain of a group is what it adds to those before it. With `shared` all
    targets get the same groups, by the sum of their relative gains.
    """

    def __init__(self, target: Tensor, bases: Tensor, shared: bool) -> None:
        h = target.shape[:-2]
        self._target, self._bases = target, bases.expand(*h, *bases.shape[-3:]).clone()
        self._sizes = torch.linalg.vector_norm(self._bases, dim=(-1, -2))
        self._taken = torch.zeros(*h, bases.shape[-3], dtype=torch.bool)
        self._whole = target.square().sum((-1, -2)).clamp_min(torch.finfo(target.dtype).tiny)
        self._shared = shared and len(h) > 0
        self._chosen: list[Tensor] = []

    def first(self, count: int) -> Tensor:
        """The first `count` groups, `(count,)` where shared, else `(*h, count)`."""
        while len(self._chosen) < count:
            self._choose()
        return torch.cat(self._chosen[:count], -1)

    def _choose(self) -> None:
        rows = _orthonormal(self._bases, self._sizes)
        gains = (self._target.unsqueeze(-3) @ rows.mT).square().sum((-1, -2)).masked_fill(self._taken, -1.0)
        if self._shared:
            gains = (gains / self._whole.unsqueeze(-1)).flatten(0, -2).sum(0)
        best = gains.argmax(-1, keepdim=True)
        self._chosen.append(best)
        best = best.expand(*self._whole.shape, 1)
        self._taken = self._taken.scatter(-1, best, True)
        row = torch.take_along_dim(rows, best[..., None, None], -3).squeeze(-3)  # (*h, q, l)
        self._target = self._target - (self._target @ row.mT) @ row
        self._bases = self._bases - (self._bases @ row.mT.unsqueeze(-3)) @ row.unsqueeze(-3)


def _orthonormal(bases: Tensor, sizes: Tensor) -> Tensor:
    """An orthonormal basis of the one or two rows of each group, zero for a row that what was chosen spans already."""
    floor = RCOND * sizes[..., None]
    first = bases[..., 0, :]
    rows = [_unit(first, floor)]
    for k in range(1, bases.shape[-2]):
        row = bases[..., k, :]
        for _ in range(2):  # once more: what is nearly parallel keeps no digit the first time
            for earlier in rows:
                row = row - (row * earlier).sum(-1, keepdim=True) * earlier
        rows.append(_unit(row, floor))
    return torch.stack(rows, -2)


def _unit(row: Tensor, floor: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(length > floor, row / length.clamp_min(torch.finfo(row.dtype).tiny), torch.zeros_like(row))
