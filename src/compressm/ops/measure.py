"""Times of all forms of a recurrence on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from compressm.ops.cost import CostTable, Form, Machine, Shape, cost_table
from compressm.ops.diagonal import diagonal_lti


@dataclass(frozen=True)
class FormTime:
    """A form's estimated and measured seconds for one call, forward and, in training, backward."""

    form: Form
    estimated: float
    measured: float


def measure_forms(shape: Shape, *, seconds: float = 1.0, machine: Machine | None = None) -> list[FormTime]:
    """Run all forms that can run here on random float32 data, in turns, for about `seconds`; medians, fastest first.

    Each form gets its input in the order of memory that it wants. Estimates are by the table in use, for `machine`
    (`Machine.here()` unless given).
    """
    machine = machine or Machine.here()
    estimates = {form: cost_table().seconds(form, shape, machine) for form in Form}
    calls = {form: _call(form, shape) for form, estimate in estimates.items() if estimate < float("inf")}
    times: dict[Form, list[float]] = {form: [] for form in calls}
    started = time.perf_counter()
    for call in calls.values():
        call()  # compiles, and fills caches
    while min(map(len, times.values())) < 3 or time.perf_counter() - started < seconds:
        for form, call in calls.items():
            start = time.perf_counter()
            call()
            times[form].append(time.perf_counter() - start)
    found = [FormTime(form, estimates[form], statistics.median(values)) for form, values in times.items()]
    return sorted(found, key=lambda one: one.measured)


def fit_scales(measured: Mapping[Shape, Sequence[FormTime]], machine: Machine | None = None) -> CostTable:
    """A table for `machine` (`Machine.here()` unless given): each form's costs of the shipped table, times the median
    over the shapes of measured to estimated time. `measured` is what `measure_forms` found for each shape.
    """
    machine, ratios = machine or Machine.here(), {}
    for shape, times in measured.items():
        for one in times:
            shipped = CostTable().seconds(one.form, shape, machine)
            ratios.setdefault(one.form.value, []).append(one.measured / shipped)
    return CostTable({form: statistics.median(values) for form, values in ratios.items()})


def _call(form: Form, shape: Shape) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    def signal(channels: int) -> torch.Tensor:
        order = form.memory
        sizes = shape.batch, shape.length, channels
        back = [order.index(d) for d in range(3)]
        return normal(*(sizes[d] for d in order)).permute(back)

    n = shape.order
    poles = [normal(n).abs().double() * 0.1 + 1e-3, normal(n).double()]
    matrices = [normal(n, shape.inputs), normal(n, shape.inputs), normal(shape.outputs, n), normal(shape.outputs, n)]
    leaves = [t.requires_grad_(shape.training) for t in (*poles, *matrices, signal(shape.inputs))]
    grad = signal(shape.outputs)

    def call() -> object:
        y = diagonal_lti(*leaves, form=form)
        return torch.autograd.grad(y, leaves, grad) if shape.training else y

    return call
