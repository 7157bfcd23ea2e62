"""A step as it is written down, operation by operation: as calls of PyTorch and NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import numpy as np
import torch
from torch import Tensor

from compressm.layers.streaming.vectors import Call, Tables, Vectors

_PIECE = 400_000
"""The most weights of one product in NumPy. OpenBLAS gives larger ones (from 460,800 weights) to threads of its own,
which take longer to wake than the product takes, and milliseconds where another process has their core."""


class Script(ABC):
    """Writes down operations on vectors in fixed memory, (batch, n) each; `take` gives what was written."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    @abstractmethod
    def call(self, function: Call) -> None:
        """Any function."""

    @abstractmethod
    def product(self, weight: Tensor, bias: Tensor, source: Vectors, target: Tensor) -> None:
        """target = source weight^T + bias for weight (m, n), source (batch, n), target (batch, m)."""

    @abstractmethod
    def advance(self, pole: Tensor, drive: Tensor, state: Tensor) -> None:
        """state = pole state + drive for a complex pole (N,); drive and state (batch, 2 N) hold pairs of reals."""

    @abstractmethod
    def gelu(self, t: Tensor) -> None:
        """t = t + t erf(t), which is sqrt(2) GELU(sqrt(2) t)."""

    @abstractmethod
    def gate(self, both: Tensor, x: Tensor) -> None:
        """x = x + v sigmoid(s) for (v | s) in `both`, whose s is spoilt."""

    @abstractmethod
    def add_product(self, factor: Tensor, source: Tensor, target: Tensor) -> None:
        """target = target + factor source with factor (n,)."""

    @abstractmethod
    def copy(self, source: Tensor, target: Tensor) -> None:
        """target = source."""

    @abstractmethod
    def take(self) -> tuple[Call, ...]:
        """What was written since the last time, in order."""


class PlainScript(Script):
    """Calls of PyTorch; products with a single vector on the CPU go through NumPy.

    NumPy's BLAS (OpenBLAS) has a faster matrix-vector product than PyTorch's (MKL) on some processors and less work
    around it. Matrices are stored transposed, with the bias below them.
    """

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._calls: list[Call] = []

    def call(self, function: Call) -> None:
        self._calls.append(function)

    def product(self, weight: Tensor, bias: Tensor, source: Vectors, target: Tensor) -> None:
        operand = source.extended
        table = self.tables.hold(torch.cat([weight.mT, bias[None]]).to(operand))
        if operand.shape[0] > 1 or operand.device.type != "cpu":
            self.call(partial(torch.mm, operand, table, out=target))
            return
        count = -(-table.numel() // _PIECE) if table.numel() else 1
        vectors, matrices = np.array_split(operand[0].numpy(), count), np.array_split(table.numpy(), count)
        result = target[0].numpy()
        self.call(partial(np.dot, vectors[0], matrices[0], out=result))
        part = np.empty_like(result)
        for vector, matrix in zip(vectors[1:], matrices[1:], strict=True):
            self.call(partial(np.dot, vector, matrix, out=part))
            self.call(partial(np.add, result, part, out=result))

    def advance(self, pole: Tensor, drive: Tensor, state: Tensor) -> None:
        moving, driving = (torch.view_as_complex(x.unflatten(1, (len(pole), 2))) for x in (state, drive))
        self.call(partial(torch.addcmul, driving, pole, moving, out=moving))

    def gelu(self, t: Tensor) -> None:
        e = torch.empty_like(t)
        self.call(partial(torch.erf, t, out=e))
        self.call(partial(t.addcmul_, t, e))

    def gate(self, both: Tensor, x: Tensor) -> None:
        value, gate = both.chunk(2, 1)
        self.call(gate.sigmoid_)
        self.call(partial(x.addcmul_, value, gate))

    def add_product(self, factor: Tensor, source: Tensor, target: Tensor) -> None:
        self.call(partial(target.addcmul_, factor, source))

    def copy(self, source: Tensor, target: Tensor) -> None:
        self.call(partial(target.copy_, source))

    def take(self) -> tuple[Call, ...]:
        calls, self._calls = tuple(self._calls), []
        return calls
