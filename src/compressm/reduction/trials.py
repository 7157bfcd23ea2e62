"""Reductions that are tried and measured, where no theory says beforehand what they lose."""

from __future__ import annotations

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

    def smallest(self, admitted: Callable[[Trial], bool]) -> int | None:
        """The smallest size whose trial is admitted, None where none is, in about 2 log2(size) trials.

        Where admission is not monotonic in the size, one that is admitted while the next smaller one is not.
        """

        def good(place: int) -> bool:
            trial = self.attempt(self.sizes[place])
            return trial is not None and admitted(trial)

        if not self.sizes:
            return None
        bad, place, step, last = -1, 0, 1, len(self.sizes) - 1
        while not good(place):
            if place == last:
                return None
            bad, place, step = place, min(place + step, last), 2 * step
        while place - bad > 1:
            middle = (bad + place) // 2
            bad, place = (bad, middle) if good(middle) else (middle, place)
        return self.sizes[place]
