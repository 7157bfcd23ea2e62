"""`compressm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    batch: Annotated[
        int | None, typer.Option(help="Sequences in a batch; without sizes, a range of them.", min=1)
    ] = None,
    length: Annotated[int | None, typer.Option(help="Steps of a sequence.", min=1)] = None,
    width: Annotated[int | None, typer.Option(help="Inputs and outputs of the layer.", min=1)] = None,
    order: Annotated[int | None, typer.Option(help="States of the layer.", min=1)] = None,
    inference: Annotated[bool, typer.Option("--inference", help="Forward only.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch.", min=1)] = None,
    cost_table: Annotated[Path | None, typer.Option(help="Estimate by this table, not the shipped one.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write a table of costs for this machine.")] = None,
    seconds: Annotated[float, typer.Option(help="Time to spend on each row of the table.", min=0.0)] = 1.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")] = False,
) -> int:
    """Show in which form a recurrence of some size would run and why, and time all forms here.

    A table that --write makes is used by `compressm train --set training.cost_table=FILE`, and stored with the run.
    """
    import json

    import torch

    from compressm.cli.arithmetic import read_cost_table
    from compressm.cli.console import Terminal
    from compressm.cli.report.bench import TYPICAL, bench_tables
    from compressm.cli.report.show import print_table
    from compressm.errors import ConfigError
    from compressm.ops import Shape, keep_freed_memory, kernels_run, use_cost_table
    from compressm.ops.measure import fit_scales, measure_forms

    terminal = Terminal(quiet)
    sizes = batch, length, width, order
    if any(sizes) and not all(sizes):
        raise ConfigError("Give all of --batch, --length, --width and --order, or none of them.")
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
    use_cost_table(read_cost_table(cost_table))
    terminal.say(
        f"{torch.get_num_threads()} thread(s), "
        + ("compiled kernels" if kernels_run() else "no compiled kernels (pip install 'compressm[fast]')")
    )
    given = [(batch or 0, length or 0, width or 0, order or 0)] if all(sizes) else TYPICAL
    shapes = [Shape(b, n, h, h, k, not inference) for b, n, h, k in given]
    for table in bench_tables([(shape, measure_forms(shape, seconds=seconds)) for shape in shapes]):
        print_table(terminal.out, table)
    if write is not None:
        table = fit_scales([Shape(b, n, h, h, k, not inference) for b, n, h, k in TYPICAL], seconds=seconds)
        write.write_text(json.dumps({"scale": dict(table.scale)}, indent=2) + "\n", encoding="utf-8")
        terminal.say(f"Table of costs: {write}")
    return 0
