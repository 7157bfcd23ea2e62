"""Eigenvectors of a reduced system, and of the smaller ones that a search is likely to ask for next."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from compressm.linalg.parallel import side_by_side
from compressm.reduction.reducers import Projected, Reducer

_MOST = 4  # decompositions at once


class Lookahead:
    """Eigenvalues and eigenvectors of a single system's reductions, some orders at a time.

    Where an order is likely to be refused, threads that one decomposition leaves idle find those of the next ones.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

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
        return self._found[order]


def _decomposed(a: Tensor) -> tuple[Tensor, Tensor]:
    poles, vectors = torch.linalg.eig(a)
    return poles, vectors
