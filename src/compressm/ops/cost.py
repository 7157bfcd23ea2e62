"""Which form of a diagonal recurrence is cheapest: a pure function of the shape, the machine and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor

from compressm.checks import brief, require_integer, require_kind
from compressm.errors import ConfigError
from compressm.ops.blocks import block_length
from compressm.ops.kernels import usable
from compressm.ops.lanes import LANES
from compressm.ops.precision import working_dtype


class Form(Enum):
    """How a linear recurrence is computed. All forms give the same output up to rounding."""

    REFERENCE = "reference"  # one step after another in plain torch: the oracle
    CONVOLUTION = "convolution"  # FFT convolution with the impulse response
    CHUNKED = "chunked"  # blocks of time: matrix products and one elementwise recurrence, state carried between blocks
    LANES = "lanes"  # one compiled pass, 16 sequences at a time: float32 on the CPU with numba

    @property
    def memory(self) -> tuple[int, int, int]:
        """The dimensions of (batch, L, H) in the order of memory, slowest first, in which no copies are needed."""
        return _MEMORY.get(self.value, (0, 1, 2))


_MEMORY = {"convolution": (2, 0, 1), "chunked": (1, 0, 2), "lanes": (2, 1, 0)}


@dataclass(frozen=True)
class Shape:
    """One call: `batch` sequences of `length` steps, a layer of `order` states, with or without a backward pass."""

    batch: int
    length: int
    inputs: int
    outputs: int
    order: int
    training: bool


@dataclass(frozen=True)
class Machine:
    """What the cost of a form depends on beside the shape."""

    threads: int = 1
    kernels: bool = False  # compiled kernels run on these tensors
    itemsize: int = 4  # bytes of a real number

    @classmethod
    def of(cls, u: Tensor) -> Machine:
        """For the input u here and now; half precision is computed in float32."""
        return cls(_threads(), usable(u.device, working_dtype(u)), working_dtype(u).itemsize)

    @classmethod
    def here(cls) -> Machine:
        """For float32 on this process's CPU."""
        return cls(_threads(), usable(torch.device("cpu"), torch.float32))


def _threads() -> int:
    return torch.get_num_threads()


vars(_threads)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result, whose import takes seconds


# Nanoseconds on one thread for one unit of each kind of work, without and with a backward pass, as
# benchmarks/fit_costs.py fits them to measured times. What counts is how they compare.
_START = "start"
Work = tuple[str, Mapping[str, float]]
"""A row of the table, and how many units of each kind of work there are."""
_COSTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "convolution, compiled": {
        "kernel": (0.075, 0.21),  # one term of the impulse response: L H_in H_out N
        "transform": (0.32, 0.63),  # one butterfly of a Fourier transform
        "mixing": (0.05, 0.19),  # one complex product of transforms
        _START: (5.3e5, 1.4e6),
    },
    "convolution": {"kernel": (0.15, 0.38), "transform": (0.38, 0.82), "mixing": (0.11, 0.34), _START: (3.5e5, 9.5e5)},
    "chunked, compiled": {
        "product": (0.046, 0.134),  # one term of drive or readout
        "state": (2.5, 12.0),  # one state at one step
        "call": (2.2e4, 1.1e5),  # the calls of one block
        _START: (2.8e5, 6.1e5),
    },
    "chunked": {"product": (0.045, 0.13), "state": (4.6, 22.0), "call": (5.3e3, 1.8e4), _START: (4.0e5, 1.0e6)},
    "lanes": {
        "product": (0.05, 0.2),  # one term of drive or readout for one of 16 sequences
        "number": (0.37, 0.85),  # one state, input or output of one of 16 sequences at one step
        _START: (1.4e5, 6.7e5),
    },
}
_PARALLEL = 0.85  # the share of a convolution or of matrix products that more threads shorten


@dataclass(frozen=True)
class CostTable:
    """The shipped table, or one scaled to another machine.

    `scale` multiplies the cost of a form (by value); `compressm bench --write` measures it. A run stores its table.
    """

    scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_kind("CostTable.scale", self.scale, Mapping, wanted="a mapping from forms to positive numbers")
        known = {form.value for form in Form}
        for name, value in self.scale.items():
            if name not in known or not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ConfigError(
                    f"The cost table scales {brief(name)} by {brief(value)}; wanted a positive number for one of "
                    f"{sorted(known)}."
                )

    def parts(self, form: Form, shape: Shape, machine: Machine) -> Mapping[str, float]:
        """The estimated seconds of one call in this form, by kind of work; empty where it cannot run."""
        found = _WORK[form](shape, machine) if form in _WORK else None
        if found is None:
            return {}
        kind, work = found
        scale, column = 1e-9 * self.scale.get(form.value, 1.0), int(shape.training)
        return {name: scale * _COSTS[kind][name][column] * units for name, units in {_START: 1.0, **work}.items()}

    def seconds(self, form: Form, shape: Shape, machine: Machine) -> float:
        """The estimated time of one call in this form; infinite where it cannot run."""
        return sum(self.parts(form, shape, machine).values()) or math.inf

    def choose(self, shape: Shape, machine: Machine) -> Form:
        """The form with the least estimated time."""
        choose = _choose if torch.compiler.is_compiling() else _chosen_before
        return choose(tuple(self.scale.items()), shape, machine)


def _shared(machine: Machine) -> float:
    """The time that parallel work takes, with that of one thread of float32 as the unit."""
    return machine.itemsize / 4 * (1 - _PARALLEL + _PARALLEL / machine.threads)


def _convolution(s: Shape, machine: Machine) -> Work:
    """Kernel, transforms and mixing: the kernel does not depend on the batch, the transforms not on the order."""
    size, share = 2.0 * max(s.length, 1), _shared(machine)
    signals = s.batch * (s.inputs + s.outputs) + s.inputs * s.outputs
    work = {
        "kernel": s.length * s.inputs * s.outputs * s.order * share,
        "transform": size * math.log2(size) * signals * share,
        "mixing": size * s.batch * s.inputs * s.outputs * share,
    }
    return "convolution, compiled" if machine.kernels else "convolution", work


def _chunked(s: Shape, machine: Machine) -> Work:
    """Drive and readout, the states, and the calls of each block."""
    states, share = s.batch * s.length * s.order, _shared(machine)
    products = states * (s.inputs + s.outputs) * share
    if s.training and s.order > s.inputs:
        products *= 1.17  # states are computed anew going backwards
    blocks = s.length / block_length(s.batch, s.order, s.length, machine.itemsize)
    if machine.kernels:
        work = {"product": products, "state": states * machine.itemsize / 4, "call": blocks}
        return "chunked, compiled", work
    return "chunked", {"product": products, "state": states * share, "call": 0.3 * s.length + blocks}


def _lanes(s: Shape, machine: Machine) -> Work | None:
    """Rounds of groups of 16 sequences, one group a thread."""
    if not machine.kernels:
        return None
    rounds, width = math.ceil(math.ceil(s.batch / LANES) / machine.threads), s.inputs + s.outputs
    steps = rounds * LANES * s.length
    return "lanes", {"product": steps * s.order * width, "number": steps * (s.order + width)}


_WORK = {
    Form.CONVOLUTION: _convolution,
    Form.CHUNKED: _chunked,
    Form.LANES: _lanes,
}


def _choose(scale: tuple[tuple[str, float], ...], shape: Shape, machine: Machine) -> Form:
    table, best, least = CostTable(dict(scale)), Form.CONVOLUTION, math.inf
    for form in _WORK:  # min(_WORK, key=...) would break the graphs of torch.compile
        seconds = table.seconds(form, shape, machine)
        if seconds < least:
            best, least = form, seconds
    return best


_chosen_before = lru_cache(maxsize=1024)(_choose)  # a model asks the same in every step

_table = CostTable()


def cost_table() -> CostTable:
    """The table in use."""
    return _table


def use_cost_table(table: CostTable) -> CostTable:
    """Decide by another table from now on in this process; returns the one before."""
    global _table
    require_kind("table", table, CostTable)
    before, _table = _table, table
    return before


def choose_form(
    batch: int, length: int, inputs: int, outputs: int, order: int, training: bool, machine: Machine | None = None
) -> Form:
    """The cheapest form for these sizes.

    The choice depends on nothing but its arguments and the table in use, so that resumed runs and all ranks agree.
    `machine` is `Machine.here()` unless given. Raises ConfigError where an argument is of another kind.
    """
    sizes = {"batch": batch, "length": length, "inputs": inputs, "outputs": outputs, "order": order}
    for name, size in sizes.items():
        require_integer(name, size, 0)
    require_kind("training", training, bool)
    require_kind("machine", machine, Machine, type(None))
    shape = Shape(batch, length, inputs, outputs, order, training)
    return _table.choose(shape, Machine.here() if machine is None else machine)


def explain_cost(form: Form, shape: Shape, machine: Machine) -> Mapping[str, float]:
    """What the estimate of a form is made of: seconds by kind of work, by the table in use."""
    return _table.parts(form, shape, machine)
