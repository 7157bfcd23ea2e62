"""Vectors of 16 numbers for numba kernels: types that LLVM maps to whatever registers the processor has.

A loop over scalars leaves it to LLVM whether and along which dimension to vectorize. With these types a kernel says it:
`load`, `store` and the operators + - * / work on 16 consecutive float32 numbers, & ^ >> and the integer operators on
16 int32. Addresses are integers in bytes (`tensor.data_ptr()`), offsets count elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

LANES = 16

_I32, F32 = ir.IntType(32), ir.FloatType()
_INTS, FLOATS, _MASK = (ir.VectorType(kind, LANES) for kind in (_I32, F32, ir.IntType(1)))
FAST = ("reassoc", "contract", "arcp", "afn", "nsz")  # fused multiply-adds and reciprocals; NaN and infinity stay


class _VectorType(types.Type):
    """16 numbers of one kind."""


floats, ints, mask = _VectorType("float32x16"), _VectorType("int32x16"), _VectorType("bool16")
_LLVM = {floats: FLOATS, ints: _INTS, mask: _MASK}


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _LLVM[fe_type])


def _operator(symbol: Callable[..., Any], kind: Any, emit: Callable[[Any, Any, Any], Any], result: Any = None) -> None:
    @infer_global(symbol)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(result or kind, kind, kind) if args == (kind, kind) else None

    lower_builtin(symbol, kind, kind)(lambda context, builder, sig, args: emit(builder, *args))


_operator(operator.add, floats, lambda b, x, y: b.fadd(x, y, flags=FAST))
_operator(operator.sub, floats, lambda b, x, y: b.fsub(x, y, flags=FAST))
_operator(operator.mul, floats, lambda b, x, y: b.fmul(x, y, flags=FAST))
_operator(operator.truediv, floats, lambda b, x, y: b.fdiv(x, y, flags=FAST))
_operator(operator.lt, floats, lambda b, x, y: b.fcmp_ordered("<", x, y), mask)
_operator(operator.add, ints, lambda b, x, y: b.add(x, y))
_operator(operator.mul, ints, lambda b, x, y: b.mul(x, y))
_operator(operator.xor, ints, lambda b, x, y: b.xor(x, y))
_operator(operator.lshift, ints, lambda b, x, y: b.shl(x, y))
_operator(operator.rshift, ints, lambda b, x, y: b.lshr(x, y))  # unsigned
_operator(operator.lt, ints, lambda b, x, y: b.icmp_signed("<", x, y), mask)


def _unary(kind: Any, result: Any, emit: Callable[[Any, Any], Any], text: str) -> Any:
    def typed(typing_context: Any, x: Any) -> Any:
        return (result(kind), lambda context, builder, sig, args: emit(builder, args[0])) if x is kind else None

    typed.__doc__ = text
    return intrinsic(typed)


negate = _unary(floats, floats, lambda b, x: b.fneg(x), "-x.")
bits = _unary(floats, ints, lambda b, x: b.bitcast(x, _INTS), "The bits of 16 floats.")
from_bits = _unary(ints, floats, lambda b, x: b.bitcast(x, FLOATS), "16 floats from their bits.")
to_ints = _unary(floats, ints, lambda b, x: b.fptosi(x, _INTS), "Rounded towards zero.")
to_floats = _unary(ints, floats, lambda b, x: b.sitofp(x, FLOATS), "Rounded to the nearest float.")


def broadcast(builder: Any, vector: Any, x: Any) -> Any:
    """In LLVM: a vector of 16 times x."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * LANES))


@intrinsic
def spread(typing_context: Any, x: Any) -> Any:
    """16 times the float `x`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, FLOATS, context.cast(builder, args[0], x, types.float32))

    return floats(x), emit


@intrinsic
def spread_int(typing_context: Any, x: Any) -> Any:
    """16 times the lower 32 bits of the integer `x`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, _INTS, context.cast(builder, args[0], x, types.int32))

    return ints(x), emit


@intrinsic
def lane_numbers(typing_context: Any) -> Any:
    """0, 1, ... 15."""
    return ints(), lambda context, builder, sig, args: ir.Constant(_INTS, list(range(LANES)))


@intrinsic
def select(typing_context: Any, condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere."""
    return floats(mask, floats, floats), lambda context, builder, sig, args: builder.select(*args)


def pointer(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    """In LLVM: where element `offset` is, as the place of a number or vector of this kind."""
    place = builder.gep(builder.inttoptr(address, F32.as_pointer()), [offset])
    return builder.bitcast(place, kind.as_pointer())


@intrinsic
def load(typing_context: Any, address: Any, offset: Any) -> Any:
    """The 16 floats from element `offset` on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(pointer(builder, *args, FLOATS))
        value.align = 4
        return value

    return floats(types.int64, types.int64), emit


@intrinsic
def store(typing_context: Any, address: Any, offset: Any, x: Any) -> Any:
    """Write 16 floats from element `offset` on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], pointer(builder, args[0], args[1], FLOATS)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, floats), emit


@intrinsic
def load_spread(typing_context: Any, address: Any, offset: Any) -> Any:
    """16 times the float at element `offset`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, FLOATS, builder.load(pointer(builder, *args, F32)))

    return floats(types.int64, types.int64), emit


def _first(builder: Any, count: Any) -> Any:
    narrow = builder.trunc(count, _I32)
    return builder.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), broadcast(builder, _INTS, narrow))


def _masked(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    module = builder.module
    return builder.call(module.globals.get(name) or ir.Function(module, kind, name), args)


@intrinsic
def load_first(typing_context: Any, address: Any, offset: Any, count: Any) -> Any:
    """As `load`, of which only the first `count` are read; the others are 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(builder, args[0], args[1], FLOATS)
        rest = [ir.Constant(_I32, 4), _first(builder, args[2]), ir.Constant(FLOATS, [0.0] * LANES)]
        return _masked(builder, "llvm.masked.load.v16f32.p0", FLOATS, [place, *rest])

    return floats(types.int64, types.int64, types.int64), emit


@intrinsic
def store_first(typing_context: Any, address: Any, offset: Any, x: Any, count: Any) -> Any:
    """As `store`, of which only the first `count` are written."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(builder, args[0], args[1], FLOATS)
        rest = [ir.Constant(_I32, 4), _first(builder, args[3])]
        _masked(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), [args[2], place, *rest])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, floats, types.int64), emit


def _shuffled(order: list[int], text: str) -> Any:
    @intrinsic
    def typed(typing_context: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.shuffle_vector(args[0], args[1], ir.Constant(_INTS, order))

        return floats(floats, floats), emit

    typed.__doc__ = text
    return typed


evens = _shuffled(list(range(0, 32, 2)), "Numbers 0, 2, ... 30 of the 32 in x and y.")
odds = _shuffled(list(range(1, 32, 2)), "Numbers 1, 3, ... 31 of the 32 in x and y.")
zip_low = _shuffled([k // 2 + 16 * (k % 2) for k in range(16)], "x0, y0, x1, y1, ... x7, y7.")
zip_high = _shuffled([8 + k // 2 + 16 * (k % 2) for k in range(16)], "x8, y8, x9, y9, ... x15, y15.")


@intrinsic
def first_of(typing_context: Any, x: Any, count: Any) -> Any:
    """x with 0 in the place of all but the first `count`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_first(builder, args[1]), args[0], ir.Constant(FLOATS, [0.0] * LANES))

    return floats(floats, types.int64), emit


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """The sum of the 16 floats."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, width = args[0], LANES
        while width > 1:  # halves are added, so that the order of summation is fixed
            width //= 2
            low, high = ([*range(k, k + width)] for k in (0, width))
            nothing = ir.Constant(x.type, ir.Undefined)
            kind = ir.VectorType(_I32, width)
            halves = [builder.shuffle_vector(x, nothing, ir.Constant(kind, part)) for part in (low, high)]
            x = builder.fadd(*halves)
        return builder.extract_element(x, ir.Constant(_I32, 0))

    return types.float32(floats), emit
