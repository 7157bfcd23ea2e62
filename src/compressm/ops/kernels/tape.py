"""One time step of a model, or a part of it, in one call: a list of instructions on single vectors.

Every matrix is read once, front to back: a step of a model that does not fit into the caches takes the time of reading
its weights. An instruction is a code, then addresses and sizes. All numbers are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressm.ops.kernels.elementary import normal, sigmoid
from compressm.ops.kernels.launch import Kernel, inline
from compressm.ops.kernels.simd import (
    LANES,
    evens,
    load,
    load_first,
    load_spread,
    odds,
    spread,
    store_first,
    zip_high,
    zip_low,
)

_BYTES = 4
_UNROLLED = 8
_OPERANDS = 6
_PRODUCT, _ADVANCE, _GELU, _GATE, _ADD_PRODUCT, _COPY = range(6)


@dataclass(frozen=True)
class Instruction:
    """What one instruction does, and the memory and sizes that it does it with."""

    code: int
    operands: tuple[Tensor | int, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it is a product with a matrix."""
        return self.code == _PRODUCT


def panels(matrix: Tensor) -> Tensor:
    """A matrix (m, n) as `product` wants it: (m / 16 rounded up, n, 16), 16 rows side by side, spare rows zero."""
    rows, columns = matrix.shape
    count = -(-rows // LANES)
    padded = matrix.new_zeros(count * LANES, columns)
    padded[:rows] = matrix
    return padded.view(count, LANES, columns).mT


def product(table: Tensor, x: Tensor, y: Tensor) -> Instruction:
    """y = W x for the panels of W (m, n), x of at least n and y of m numbers."""
    return Instruction(_PRODUCT, (table, x, y, y.numel(), table.shape[1]))


def advance(pole: Tensor, drive: Tensor, state: Tensor) -> Instruction:
    """state = pole state + drive for complex numbers as pairs: (N, 2) each."""
    return Instruction(_ADVANCE, (pole, drive, state, state.numel()))


def gelu(t: Tensor) -> Instruction:
    """t = t + t erf(t), which is sqrt(2) GELU(sqrt(2) t)."""
    return Instruction(_GELU, (t, t.numel()))


def gate(both: Tensor, x: Tensor) -> Instruction:
    """x = x + v sigmoid(s) for (v | s) in `both`."""
    return Instruction(_GATE, (both, x, x.numel()))


def add_product(factor: Tensor, x: Tensor, y: Tensor) -> Instruction:
    """y = y + factor x."""
    return Instruction(_ADD_PRODUCT, (factor, x, y, y.numel()))


def copy(x: Tensor, y: Tensor) -> Instruction:
    """y = x."""
    return Instruction(_COPY, (x, y, y.numel()))


class Tape:
    """Instructions as one call without arguments, on the caller's thread."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        """Tensors are contiguous float32 on the CPU, and are held; what they hold at the time of a call counts."""
        self.instructions = tuple(instructions)
        words: list[Tensor | int] = []
        for instruction in instructions:
            spare = _OPERANDS - len(instruction.operands)
            words += [instruction.code, *instruction.operands, *[0] * spare]
        self._run = _interpret.bound(1, len(instructions), *words)

    def __call__(self) -> None:
        """Run the instructions one after the other."""
        self._run()


@inline
def _times(table: Any, x: Any, y: Any, rows: Any, columns: Any) -> None:
    """y = W x, with eight sums a row: numbers k, k + 8, k + 16, ... of the row belong to one."""
    even = columns - columns % _UNROLLED
    for row in range(0, rows, LANES):
        w = table + row * columns * _BYTES
        s0, s1, s2, s3 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
        s4, s5, s6, s7 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
        for k in range(0, even, _UNROLLED):
            i = k * LANES
            s0 = s0 + load_spread(x, k) * load(w, i)
            s1 = s1 + load_spread(x, k + 1) * load(w, i + LANES)
            s2 = s2 + load_spread(x, k + 2) * load(w, i + 2 * LANES)
            s3 = s3 + load_spread(x, k + 3) * load(w, i + 3 * LANES)
            s4 = s4 + load_spread(x, k + 4) * load(w, i + 4 * LANES)
            s5 = s5 + load_spread(x, k + 5) * load(w, i + 5 * LANES)
            s6 = s6 + load_spread(x, k + 6) * load(w, i + 6 * LANES)
            s7 = s7 + load_spread(x, k + 7) * load(w, i + 7 * LANES)
        for k in range(even, columns):
            s0 = s0 + load_spread(x, k) * load(w, k * LANES)
        store_first(y, row, ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)), rows - row)


@inline
def _parts(x: Any, i: Any, rest: Any) -> Any:
    """Real and imaginary parts of 16 complex numbers, of which the first rest / 2 are read."""
    low, high = load_first(x, i, rest), load_first(x, i + LANES, rest - LANES)
    return evens(low, high), odds(low, high)


@Kernel
def _interpret(a: Any) -> None:
    """Arguments: number of instructions, then for each its code and six operands."""
    for index in range(a[2]):
        at = 3 + index * (1 + _OPERANDS)
        code = a[at]
        if code == _PRODUCT:
            _times(a[at + 1], a[at + 2], a[at + 3], a[at + 4], a[at + 5])
        elif code == _ADVANCE:
            pole, drive, state, size = a[at + 1], a[at + 2], a[at + 3], a[at + 4]
            for i in range(0, size, 2 * LANES):
                p, q = _parts(pole, i, size - i)
                u, v = _parts(drive, i, size - i)
                re, im = _parts(state, i, size - i)
                re, im = p * re - q * im + u, p * im + q * re + v
                store_first(state, i, zip_low(re, im), size - i)
                store_first(state, i + LANES, zip_high(re, im), size - i - LANES)
        elif code == _GELU:
            t, size = a[at + 1], a[at + 2]
            for i in range(0, size, LANES):
                z = load_first(t, i, size - i)
                phi, _ = normal(z * spread(1.4142135623730951))
                store_first(t, i, (z + z) * phi, size - i)
        elif code == _GATE:
            both, x, size = a[at + 1], a[at + 2], a[at + 3]
            for i in range(0, size, LANES):
                v, s = load_first(both, i, size - i), load_first(both, i + size, size - i)
                store_first(x, i, load_first(x, i, size - i) + v * sigmoid(s), size - i)
        elif code == _ADD_PRODUCT:
            factor, x, y, size = a[at + 1], a[at + 2], a[at + 3], a[at + 4]
            for i in range(0, size, LANES):
                z = load_first(factor, i, size - i) * load_first(x, i, size - i)
                store_first(y, i, load_first(y, i, size - i) + z, size - i)
        elif code == _COPY:
            x, y, size = a[at + 1], a[at + 2], a[at + 3]
            for i in range(0, size, LANES):
                store_first(y, i, load_first(x, i, size - i), size - i)
