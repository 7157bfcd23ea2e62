"""Eigenvectors of a reduced system, and of the smaller ones that a search is likely to ask for next."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from compressm.linalg.parallel import side_by_side
from compressm.linalg.real_poles import least_real_poles
from compressm.reduction.reducers import Projected, Reducer

_MOST = 4  # decompositions at once
_REMOVED = 8  # states fewer, up to which real poles are counted


class Lookahead:
    """Eigenvalues and eigenvectors of a single system's reductions, some orders at a time.

    Where an order is likely to be refused, threads that one decomposition leaves idle find those of the next ones.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._real: dict[int, int] = {}

    def eigen(self, projected: Projected, further: bool) -> tuple[Tensor, Tensor]:
        """Those of a reduced system; with `further`, smaller ones that it contains are decomposed beside it."""
        order = projected.system.order
        if order not in self._found:
            candidates = [projected.system.a]
            for states in range(order - 1, max(0, order - min(_MOST, torch.get_num_threads())), -1):
                smaller = self._reducer.truncated(projected, states) if further else None
                candidates += [] if smaller is None else [smaller.system.a]
            found = side_by_side([partial(_decomposed, a) for a in candidates])
            self._found = {poles.shape[-1]: (poles, vectors) for poles, vectors in found}
            if further and order > 1 and self._reducer.truncated(projected, order - 1) is not None:
                poles, vectors = (t.squeeze(0) for t in self._found[order])
                counts = least_real_poles(poles, vectors, min(_REMOVED, order - 1))
                self._real = {order - k - 1: count for k, count in enumerate(counts)}
        return self._found[order]

    def crowded(self, order: int, slots: int) -> bool:
        """Whether it is known that real poles and conjugate pairs of the reduction to `order` need more than `slots`.

        Known from the real poles that it has at least, where a larger reduction was decomposed with `further`.
        """
        return order + self._real.get(order, 0) > 2 * slots


def _decomposed(a: Tensor) -> tuple[Tensor, Tensor]:
    poles, vectors = torch.linalg.eig(a)
    return poles, vectors
