"""`compressm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressm.cli.stopping import import_torch


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

    Without sizes a range of them is shown. A table that --write makes is fitted to that range; it is used by
    `compressm train --set training.cost_table=FILE`, and stored with the run.
    """
    import_torch()
    import json

    import torch

    from compressm.cli.arithmetic import read_cost_table
    from compressm.cli.config import require_threads
    from compressm.cli.console import Terminal
    from compressm.cli.folder import require_place
    from compressm.cli.report.bench import TYPICAL, bench_tables
    from compressm.cli.report.show import print_table
    from compressm.errors import ConfigError
    from compressm.ops import Shape, keep_freed_memory, kernels_missing, use_cost_table
    from compressm.ops.measure import fit_scales, measure_forms

    terminal = Terminal(quiet)
    sizes = batch, length, width, order
    if any(sizes) and not all(sizes):
        raise ConfigError("Give all of --batch, --length, --width and --order, or none of them.")
    if write is not None:
        require_place("--write", write)
        if write.is_dir():
            raise ConfigError(f"--write {write} is a folder; give a file in it.")
    if threads is not None:
        require_threads("--threads", threads)
        torch.set_num_threads(threads)
    keep_freed_memory()
    use_cost_table(read_cost_table(cost_table, "Give another --cost-table, or none for the table that is shipped."))
    missing = kernels_missing()
    terminal.say(
        f"{torch.get_num_threads()} thread(s), "
        + ("compiled kernels" if missing is None else f"no compiled kernels: {missing}")
    )
    typical = [Shape(b, n, h, h, k, not inference) for b, n, h, k in TYPICAL]
    one = [Shape(batch, length, width, width, order, not inference)] if batch and length and width and order else []
    measured = {shape: measure_forms(shape, seconds=seconds) for shape in one or typical}
    for table in bench_tables(list(measured.items())):
        print_table(terminal.out, table)
    if write is not None:
        table = fit_scales({s: measured.get(s) or measure_forms(s, seconds=seconds) for s in typical})
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(json.dumps({"scale": dict(table.scale)}, indent=2) + "\n", encoding="utf-8")
        terminal.say(f"Table of costs: {write}")
    return 0
