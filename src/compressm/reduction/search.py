"""The search for the largest order at which each system of a bank can be stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from compressm.errors import UnsupportedReductionError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import Projected, Reducer
from compressm.reduction.weighting import Limits, Refusal, Weighting

_MOST_NOTES = 2
Stored = TypeVar("Stored")


@dataclass(eq=False)
class Notes:
    """Why orders were passed over, for the report."""

    lines: list[str] = field(default_factory=list)

    def condensed(self) -> str:
        """In one line: the first, how many, and the last."""
        if len(self.lines) <= _MOST_NOTES:
            return "; ".join(self.lines)
        return f"{self.lines[0]}; {len(self.lines) - 2} more like it; {self.lines[-1]}"

    def fallbacks(self) -> tuple[str, ...]:
        """What a report says where a lower order was taken."""
        return (self.condensed() + "; a lower order was taken",) if self.lines else ()


@dataclass(frozen=True, eq=False)
class Bank:
    """Systems side by side (one batch dimension): those of a larger bank at `index`, and the weighting of them all."""

    system: StateSpace
    index: Tensor
    whole: Weighting

    @classmethod
    def of(cls, system: StateSpace, weighting: Weighting) -> Bank:
        """A bank with one batch dimension, whatever the batch of `system`: a single system is a bank of one."""
        count = system.batch_shape.numel()
        return cls(system.with_batch(count), torch.arange(count), weighting.flattened())

    @property
    def size(self) -> int:
        """The number of systems."""
        return len(self.index)

    def weighting(self) -> Weighting:
        """The weighting of these systems."""
        w = self.whole
        if len(w.spectrum.values) == self.size:
            return w
        return replace(w, factors=w.factors[self.index], spectrum=w.spectrum[self.index])

    def part(self, index: Tensor) -> Bank:
        """Some of the systems, by increasing indices."""
        if len(index) == self.size:
            return self
        return Bank(self.system[index], self.index[index], self.whole)


@dataclass(frozen=True, eq=False)
class Attempt(Generic[Stored]):
    """What came of storing projected systems: which were `accepted` `(H,)` and their stored form, or a refusal."""

    accepted: Tensor
    stored: Stored | None = None
    refusal: Refusal | None = None


def search(
    bank: Bank,
    ranks: Tensor,
    states: int,
    reducer: Reducer,
    store: Callable[[Bank, Projected, Notes], Attempt[Stored]],
    notes: Notes,
) -> list[tuple[Tensor, Stored]] | Refusal:
    """For each system the largest order, up to `states` and its rank, at which `store` accepts its reduction.

    Returns indices of systems with their stored forms; systems of rank 0 are in none. All systems for which an order is
    open are reduced and decomposed together. A refusal of `store`, or a system without any order, is the result.
    """
    pending = ranks > 0
    whole: tuple[Tensor, Projected] | None = None
    found: list[tuple[Tensor, Stored]] = []
    for order in range(min(states, int(ranks.max()) if ranks.numel() else 0), 0, -1):
        index = (pending & (ranks >= order)).nonzero().flatten()
        if len(index) == 0:
            continue
        part = bank.part(index)
        projected = _from_larger(whole, index, order, reducer)
        if projected is None:
            try:
                weighting = part.weighting()
                projected = reducer.reduce(part.system, weighting.factors, weighting.spectrum, order)
            except UnsupportedReductionError as error:
                notes.lines.append(str(error))
                continue
            whole = index, projected
        if projected.refused is not None and bool(projected.refused.any()):
            notes.lines.append(projected.reason)
        attempt = store(part, projected, notes)
        if attempt.refusal is not None:
            return attempt.refusal
        if attempt.stored is not None:
            found.append((index[attempt.accepted], attempt.stored))
            pending[index[attempt.accepted]] = False
    return Refusal(notes.condensed()) if bool(pending.any()) else found


def _from_larger(
    whole: tuple[Tensor, Projected] | None, index: Tensor, order: int, reducer: Reducer
) -> Projected | None:
    """The reduction of the systems `index` as a part of one that is known already."""
    if whole is None:
        return None
    known, projected = whole
    places = torch.searchsorted(known, index).clamp_max(len(known) - 1)
    return reducer.truncated(projected.part(places), order) if torch.equal(known[places], index) else None


def stable_enough(
    radius: Tensor, bank: Bank, order: int, limits: Limits, notes: Notes
) -> tuple[Tensor, Refusal | None]:
    """Which reduced systems `(H,)` are stable enough to be stored; a refusal where the Gramians are to blame.

    With Gramians that guarantee stability only round-off is left: the last states have hardly a digit of their own.
    """
    limit = limits.largest_radius(bank.system, bank.whole)
    stable = radius < limit
    if bool(stable.all()):
        return stable, None
    worst = int((radius - limit).argmax())
    among = "" if bank.size == 1 else f" in the worst of {int((~stable).sum())} systems"
    reason = (
        f"the reduced system of {order} states has the spectral radius {float(radius[worst]):.6g}{among}, "
        f"the limit is {float(limit[worst]):.6g}"
    )
    if not bank.whole.guarantees_stability:
        return stable, Refusal(reason, unstable=True)
    notes.lines.append(reason)
    return stable, None
