"""Preallocated vectors, and memory for matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], object]
"""One operation whose operands are bound: a step of a model is a list of these."""

_ALIGNMENT = 64


class Vectors:
    """(batch, size) in fixed memory, each row followed by a constant 1, so that a bias is one more row of a matrix.

    Rows begin at even offsets: pairs of neighbours can be viewed as complex numbers.
    """

    def __init__(self, batch: int, size: int, like: Tensor) -> None:
        memory = like.new_zeros(batch, size + 2 - size % 2)
        self.extended = memory[:, : size + 1]
        self.values = memory[:, :size]
        self.extended[:, size] = 1


class Tables:
    """Memory for all matrices of a model, one behind the other, in blocks of at least `size` bytes.

    NumPy asks the system for huge pages for arrays of 4 MiB or more; reading on across small pages costs a fifth of
    the time of a product whose matrix is not in the inner caches.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._block = np.empty(size, dtype=np.uint8)
        self._used = 0

    def hold(self, table: Tensor) -> Tensor:
        """The same values in this memory, row by row; on other devices than the CPU a contiguous tensor."""
        table = table.contiguous()
        if table.device.type != "cpu":
            return table
        size = table.numel() * table.element_size()
        start = self._used + (-(self._block.ctypes.data + self._used)) % _ALIGNMENT
        if start + size > len(self._block):
            self._block = np.empty(max(size + _ALIGNMENT, self._size), dtype=np.uint8)
            start = -self._block.ctypes.data % _ALIGNMENT
        self._used = start + size
        return torch.from_numpy(self._block[start : start + size]).view(table.dtype).view(table.shape).copy_(table)
