"""The tables of `compressm bench`."""

from __future__ import annotations

from compressm.cli.report.rows import Table
from compressm.ops import Machine, Shape, cost_table, explain_cost
from compressm.ops.measure import FormTime

TYPICAL = [
    (50, 784, 8, 256),
    (50, 784, 8, 47),
    (50, 784, 8, 13),
    (4, 784, 8, 64),
    (1, 4096, 8, 64),
    (16, 256, 32, 64),
    (32, 256, 64, 16),
    (8, 512, 128, 256),
]
"""Batch, length, width and order of narrow and wide layers, before and after cuts."""


def bench_tables(found: list[tuple[Shape, list[FormTime]]]) -> list[Table]:
    """What was measured, and for a single shape what the estimates are made of."""
    machine, rows = Machine.here(), []
    for shape, times in found:
        chosen = cost_table().choose(shape, machine)
        least = min(one.measured for one in times)
        sizes = tuple(map(str, (shape.batch, shape.length, shape.inputs, shape.order)))
        for number, one in enumerate(times):
            mark = "chosen" if one.form is chosen else ""
            row = (one.form.value, _ms(one.measured), _ms(one.estimated), f"{one.measured / least:.2f}", mark)
            rows.append((*(sizes if number == 0 else ("",) * len(sizes)), *row))
    what = "forward and backward" if found and found[0][0].training else "forward"
    columns = ("batch", "L", "H", "N", "form", "measured", "estimate", "/ best", "")
    note = "L: steps of a sequence. H: inputs and outputs. N: states. Times in milliseconds."
    tables = [Table(f"One layer, {what}", columns, tuple(rows), note)]
    if len(found) == 1:
        shape, times = found[0]
        parts = [
            (one.form.value, name, _ms(value))
            for one in times
            for name, value in explain_cost(one.form, shape, machine).items()
        ]
        tables.append(Table("What the estimates are made of", ("form", "part", "ms"), tuple(parts)))
    return tables


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
