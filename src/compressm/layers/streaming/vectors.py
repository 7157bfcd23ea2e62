"""Preallocated vectors and the matrix products between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], object]
"""One operation whose operands are bound: a step of a model is a list of these."""

_PIECE = 400_000
"""The most weights of one product in NumPy. OpenBLAS gives larger ones (from 460,800 weights) to threads of its own,
which take longer to wake than the product takes, and milliseconds where another process has their core."""

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


def product(weight: Tensor, bias: Tensor, source: Vectors, target: Tensor, tables: Tables) -> list[Call]:
    """target = source weight^T + bias for weight (m, n), source (batch, n), target (batch, m).

    The matrix is stored transposed, with the bias below it. A single vector on the CPU goes through NumPy, whose BLAS
    (OpenBLAS) has a faster matrix-vector product than PyTorch's (MKL) on some processors and less work around it.
    """
    operand = source.extended
    table = tables.hold(torch.cat([weight.mT, bias[None]]).to(operand))
    if operand.shape[0] > 1 or operand.device.type != "cpu":
        return [partial(torch.mm, operand, table, out=target)]
    count = -(-table.numel() // _PIECE) if table.numel() else 1
    vectors, matrices = np.array_split(operand[0].numpy(), count), np.array_split(table.numpy(), count)
    result = target[0].numpy()
    calls: list[Call] = [partial(np.dot, vectors[0], matrices[0], out=result)]
    part = np.empty_like(result)
    for vector, matrix in zip(vectors[1:], matrices[1:], strict=True):
        calls += [partial(np.dot, vector, matrix, out=part), partial(np.add, result, part, out=result)]
    return calls
