"""Orthogonal matching pursuit: which groups of states explain most of an output, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.reduction.spans import RCOND, orthonormal


class Pursuit:
    """Groups whose rows span most of `target`, one at a time (Pati et al. 1993); found as far as they are asked for.

    `target` `(*h, p, l)`; `bases` `(*h, G, q, l)`, the q rows that group g adds. The gain of a group is what it adds to
    those before it: |t b^T b^{+T}|^2 for its rows b and the target t without what the chosen ones span. With `shared`
    all targets get the same groups, by the sum of their relative gains.

    Rows are not projected as choices are made. Of each group only the inner products of what is left of its rows are
    carried, among each other and with the target, and a choice takes from them those with its own orthonormal rows: one
    reading of `bases` each (as in Batch-OMP, Rubinstein et al. 2008, but with rows that are orthogonalised twice
    instead of with a factored Gram matrix, whose condition is that of the rows squared). Where the fraction r of a
    group's length is left its gain has a relative error of about eps / r^2, which is small wherever r is above RCOND;
    nothing else that is returned depends on those products.
    """

    def __init__(self, target: Tensor, bases: Tensor, shared: bool) -> None:
        *h, groups, rows, length = bases.shape
        self._target, self._bases = target, bases.flatten(-3, -2)
        self._gram = bases @ bases.mT  # (*h, G, q, q)
        self._cross = target @ self._bases.mT  # (*h, p, G q)
        self._floor = RCOND**2 * self._gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        self._taken = torch.zeros(*h, groups, dtype=torch.bool)
        self._whole = target.square().sum((-1, -2)).clamp_min(torch.finfo(target.dtype).tiny)
        self._shared = shared and len(h) > 0
        self._chosen: list[Tensor] = []
        self._basis = target.new_empty(*h, groups * rows, length)

    def first(self, count: int) -> Tensor:
        """The first `count` groups, `(count,)` where shared, else `(*h, count)`."""
        while len(self._chosen) < count:
            self._choose()
        return torch.cat(self._chosen[:count], -1)

    def rows(self, count: int) -> Tensor:
        """The rows of the first `count` groups in the order in which they were chosen, `(*h, count q, l)`."""
        return self._rows_of(self.first(count))

    def basis(self, count: int) -> Tensor:
        """An orthonormal basis of those rows, each spanned by the first ones up to its own; zero where it adds none."""
        self.first(count)
        return self._basis[..., : count * self._gram.shape[-1], :]

    def _rows_of(self, chosen: Tensor) -> Tensor:
        q = self._gram.shape[-1]
        places = (chosen.unsqueeze(-1) * q + torch.arange(q)).flatten(-2)
        if chosen.ndim == 1:
            return self._bases.index_select(-2, places)
        return torch.take_along_dim(self._bases, places.unsqueeze(-1), -2)

    def _choose(self) -> None:
        gains = _gains(self._cross, self._gram, self._floor).masked_fill_(self._taken, -1.0)
        if self._shared:
            gains = (gains / self._whole.unsqueeze(-1)).flatten(0, -2).sum(0)
        best = gains.argmax(-1, keepdim=True)
        done, q = len(self._chosen) * self._gram.shape[-1], self._gram.shape[-1]
        self._chosen.append(best)
        self._taken.scatter_(-1, best.expand(*self._whole.shape, 1), True)
        new = orthonormal(self._rows_of(best), self._basis[..., :done, :])
        self._basis[..., done : done + q, :] = new
        seen = self._target @ new.mT  # (*h, p, q)
        moved = self._bases @ new.mT  # (*h, G q, q)
        self._target = self._target - seen @ new
        self._cross -= seen @ moved.mT
        moved = moved.unflatten(-2, (-1, q))
        self._gram -= moved @ moved.mT


def _gains(cross: Tensor, gram: Tensor, floor: Tensor) -> Tensor:
    """What each group adds `(*h, G)`: Gram and Schmidt on inner products, no row whose square is below `floor`."""
    cross = cross.unflatten(-1, gram.shape[-3:-1])  # (*h, p, G, q)
    total = torch.zeros_like(floor)
    for k in range(gram.shape[-1]):
        size = gram[..., k, k]
        scale = torch.where(size > floor, size, torch.inf).rsqrt()
        along, column = cross[..., k] * scale.unsqueeze(-2), gram[..., k] * scale.unsqueeze(-1)
        total = total + along.square().sum(-2)
        if k + 1 < gram.shape[-1]:
            cross = cross - along.unsqueeze(-1) * column.unsqueeze(-3)
            gram = gram - column.unsqueeze(-1) * column.unsqueeze(-2)
    return total
