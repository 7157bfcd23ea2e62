"""A step as it is written down for one compiled call."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.layers.streaming.script import Script
from compressm.layers.streaming.vectors import Call, Tables, Vectors
from compressm.ops.kernels import tape


class CompiledScript(Script):
    """Instructions of compiled kernels for a single float32 vector on the CPU: what lies between two other functions
    is one call.
    """

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._calls: list[Call] = []
        self._pending: list[tape.Instruction] = []

    def call(self, function: Call) -> None:
        self._flush()
        self._calls.append(function)

    def product(self, weight: Tensor, bias: Tensor, source: Vectors, target: Tensor) -> None:
        table = tape.panels(torch.cat([weight, bias[:, None]], 1).to(target))
        self._pending.append(tape.product(self.tables.hold(table), source.extended, target))

    def advance(self, pole: Tensor, drive: Tensor, state: Tensor) -> None:
        self._pending.append(tape.advance(torch.view_as_real(pole), drive, state))

    def gelu(self, t: Tensor) -> None:
        self._pending.append(tape.gelu(t))

    def gate(self, both: Tensor, x: Tensor) -> None:
        self._pending.append(tape.gate(both, x))

    def add_product(self, factor: Tensor, source: Tensor, target: Tensor) -> None:
        self._pending.append(tape.add_product(factor, source, target))

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._pending.append(tape.copy(source, target))

    def take(self) -> tuple[Call, ...]:
        self._flush()
        calls, self._calls = tuple(self._calls), []
        return calls

    def _flush(self) -> None:
        if self._pending:
            self._calls.append(tape.Tape(self._pending))
            self._pending = []
