"""Small matrix products for numba kernels: tiles of 4 x 2 vectors of 16 numbers, which stay in registers.

A row of a tile belongs to one row of a matrix or to one signal, a column to one vector of positions. Strides count
elements, addresses bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from compressm.ops.kernels.simd import F32, FAST, FLOATS, LANES, broadcast, floats, pointer

ROWS, COLUMNS = 4, 2

_PLACES = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
_LLVM = ir.ArrayType(FLOATS, len(_PLACES))
_I64 = ir.IntType(64)


class _TileType(types.Type):
    """4 x 2 vectors."""


tile = _TileType("float32x16 tile")


@register_model(_TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _LLVM)


def padded(channels: int) -> int:
    """The next multiple of a tile's rows."""
    return -(-channels // ROWS) * ROWS


@intrinsic
def zeros(typing_context: Any) -> Any:
    """A tile of zeros."""
    return tile(), lambda context, builder, sig, args: ir.Constant(_LLVM, None)


@intrinsic(prefer_literal=True)
def element(typing_context: Any, t: Any, row: Any, column: Any) -> Any:
    """The vector in a row and a column that are written as numbers."""
    place = _PLACES.index((row.literal_value, column.literal_value))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_value(args[0], place)

    return floats(t, row, column), emit


@intrinsic
def load_tile(typing_context: Any, address: Any, row: Any, column: Any) -> Any:
    """The vectors at i row + j column."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = []
        for place in _offsets(builder, args[1], args[2]):
            values.append(_load(builder, args[0], place))
        return _joined(builder, values)

    return tile(types.int64, types.int64, types.int64), emit


@intrinsic
def store_tile(typing_context: Any, address: Any, row: Any, column: Any, t: Any) -> Any:
    """Write the vectors to i row + j column."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for k, place in enumerate(_offsets(builder, args[1], args[2])):
            builder.store(builder.extract_value(args[3], k), pointer(builder, args[0], place, FLOATS)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, tile), emit


@intrinsic
def times_matrix(
    typing_context: Any, sums: Any, a: Any, row: Any, a_step: Any, b: Any, column: Any, b_step: Any, count: Any
) -> Any:
    """sums[i, j] + sum_k a[i row + k a_step] b[j column + k b_step], with numbers of a matrix in a, vectors in b."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums, a, row, a_step, b, column, b_step, count = args

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            start, other = builder.mul(k, a_step), builder.mul(k, b_step)
            left = [
                broadcast(builder, FLOATS, builder.load(pointer(builder, a, _moved(builder, start, row, i), F32)))
                for i in range(ROWS)
            ]
            right = [_load(builder, b, _moved(builder, other, column, j)) for j in range(COLUMNS)]
            return left, right

        return _accumulated(builder, sums, count, factors)

    return tile(tile, *[types.int64] * 7), emit


@intrinsic
def times_signals(typing_context: Any, sums: Any, a: Any, a_step: Any, b: Any, b_step: Any, count: Any) -> Any:
    """sums[i, j] + sum_k a[k a_step + 16 i] b[k b_step + 16 j], with vectors in both."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums, a, a_step, b, b_step, count = args
        width = _I64(LANES)

        def factors(k: Any) -> tuple[list[Any], list[Any]]:
            start, other = builder.mul(k, a_step), builder.mul(k, b_step)
            left = [_load(builder, a, _moved(builder, start, width, i)) for i in range(ROWS)]
            right = [_load(builder, b, _moved(builder, other, width, j)) for j in range(COLUMNS)]
            return left, right

        return _accumulated(builder, sums, count, factors)

    return tile(tile, *[types.int64] * 5), emit


def _accumulated(builder: Any, sums: Any, count: Any, factors: Any) -> Any:
    """The tile `sums` after `count` times adding the products of the factors of step k."""
    places = [cgutils.alloca_once(builder, FLOATS) for _ in _PLACES]  # LLVM makes registers of them
    for k, place in enumerate(places):
        builder.store(builder.extract_value(sums, k), place)
    with cgutils.for_range(builder, count) as loop:
        left, right = factors(loop.index)
        for (i, j), place in zip(_PLACES, places, strict=True):
            product = builder.fmul(left[i], right[j], flags=FAST)
            builder.store(builder.fadd(builder.load(place), product, flags=FAST), place)
    return _joined(builder, [builder.load(place) for place in places])


def _offsets(builder: Any, row: Any, column: Any) -> list[Any]:
    return [_moved(builder, _moved(builder, _I64(0), row, i), column, j) for i, j in _PLACES]


def _moved(builder: Any, start: Any, stride: Any, times: int) -> Any:
    return builder.add(start, builder.mul(stride, _I64(times))) if times else start


def _load(builder: Any, address: Any, offset: Any) -> Any:
    value = builder.load(pointer(builder, address, offset, FLOATS))
    value.align = 4
    return value


def _joined(builder: Any, values: list[Any]) -> Any:
    whole = ir.Constant(_LLVM, ir.Undefined)
    for k, value in enumerate(values):
        whole = builder.insert_value(whole, value, k)
    return whole
