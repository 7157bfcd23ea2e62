"""Reductions that are tried and measured, where no theory says beforehand what they lose."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trial:
    """What one reduction loses.

    `discarded()` is the part `(*h,)` of the sum of the values of `Spectrum` that it discards, in their units.
    `within(tolerance)` is whether the error |G - G_r|_inf is at most that, of every system of a bank, as measured.
    """

    discarded: Callable[[], Tensor]
    within: Callable[[float], bool]


@dataclass(frozen=True, eq=False)
class Trials:
    """The reductions of a layer to `sizes` stored states, increasing and below its order; None where there is none."""

    sizes: Sequence[int]
    attempt: Callable[[int], Trial | None]

    def smallest(self, admitted: Callable[[Trial], bool], least: int = 0) -> int | None:
        """The smallest size whose trial is admitted, None where none is, by bisection: in about log2 of their number.

        Sizes below `least` are known not to be. Where admission is not monotonic in the size, one that is admitted
        while the next smaller one is not, or None where the largest is not.
        """
        bad, good = bisect_left(self.sizes, least) - 1, len(self.sizes)
        while good - bad > 1:
            middle = (bad + good) // 2
            trial = self.attempt(self.sizes[middle])
            if trial is not None and admitted(trial):
                good = middle
            else:
                bad = middle
        return self.sizes[good] if good < len(self.sizes) else None
