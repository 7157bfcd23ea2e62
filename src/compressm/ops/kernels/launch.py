"""Compiled kernels and the threads they run on: torch's own.

A kernel is a function of one array of 64-bit integers: a counter, the number of parts, then addresses of tensors and
sizes. Whoever runs it takes the number of a part from the counter until all are taken, so any number of threads may
run it, one included. Results do not depend on which thread did which part.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

_SIGNATURE = types.void(types.CPointer(types.int64))


class Kernel:
    """A kernel that is compiled when it first runs; numba's cache keeps the machine code."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    @cached_property
    def _compiled(self) -> Any:
        return numba.cfunc(_SIGNATURE, cache=True, error_model="numpy")(self._function)

    def __call__(self, parts: int, *arguments: Tensor | int, threads: int | None = None) -> None:
        """Run it; tensors are passed by address: contiguous, on the CPU, of the dtype that the kernel expects.

        `threads` is torch's number of threads unless given.
        """
        self.bound(parts, *arguments, threads=threads)()

    def bound(self, parts: int, *arguments: Tensor | int, threads: int | None = None) -> Callable[[], None]:
        """The same as a call that is prepared once; the tensors' memory must outlive it."""
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        packed = (ctypes.c_int64 * (2 + len(values)))(0, parts, *values)
        workers = min(parts, threads or torch.get_num_threads())
        fork = _fork() if workers > 1 else None
        function, address, place = self._compiled.ctypes, self._compiled.address, ctypes.addressof(packed)

        def run() -> None:
            packed[0] = 0
            if fork is None:
                function(packed)
            else:
                fork(address, place, workers, 0)

        return run


inline = numba.njit(inline="always", error_model="numpy")


@intrinsic
def next_part(typing_context: Any, arguments: Any) -> Any:
    """The number of the next part that nobody has taken."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), emit


def _pointer(number: Any, text: str) -> Any:
    kind = types.CPointer(number)

    def typed(typing_context: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), emit

    typed.__doc__ = text
    return intrinsic(typed)


floats_at = _pointer(types.float32, "The float32 numbers at an address, one by one.")
doubles_at = _pointer(types.float64, "The float64 numbers at an address, one by one.")


@cache
def _fork() -> Any:
    """The function of the OpenMP runtime, torch's own, that runs a function on its threads; None where it has none."""
    try:
        fork = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    fork.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    fork.restype = None
    return fork
