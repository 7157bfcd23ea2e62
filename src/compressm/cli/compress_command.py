"""`compressm compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressm.cli.stopping import import_torch
from compressm.errors import ConfigError


def compress(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its newest checkpoint).")],
    discard: Annotated[
        float | None, typer.Option(help="Fraction of the sum of Hankel singular values to discard.", show_default=False)
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="Order to cut to, instead of --discard.", show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="Kind of balancing: default, data, white or paper.")] = "default",
    white: Annotated[bool, typer.Option("--white", help="Classical Gramians: use no data.")] = False,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Fit each layer to the inputs seen; done where data are used.",
            show_default=False,
        ),
    ] = None,
    batches: Annotated[int, typer.Option(help="Training batches that the Gramians are measured on.", min=1)] = 2,
    data: Annotated[Path | None, typer.Option(help="Other data than the run's: a .npz file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The new checkpoint; default beside the old one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")] = False,
) -> int:
    """Cut a trained model once, without training, and write a new checkpoint."""
    import_torch()
    from dataclasses import replace

    from compressm.checkpoint import save_checkpoint
    from compressm.cli.console import Terminal
    from compressm.cli.folder import require_place
    from compressm.cli.loading import load_data_of
    from compressm.cli.recorder import count
    from compressm.cli.report.after_cut import after_cut_tables
    from compressm.cli.report.show import print_table
    from compressm.cli.stored import evaluate_stored, open_stored
    from compressm.cli.stored_analysis import calibrate, named_preset, needs_data, require_fraction, without_data
    from compressm.compress import compress_
    from compressm.reduction.criteria import FixedOrder

    if (discard is None) == (order is None):
        raise ConfigError("Give either --discard (such as 0.05) or --order (such as 16).")
    if discard is not None:
        require_fraction("--discard", discard)
    if white and refit:
        raise ConfigError("--refit fits the layers to their inputs, and --white looks at none; give one of them.")
    chosen = without_data(named_preset(preset)) if white else named_preset(preset)
    if needs_data(chosen) if refit is None else refit:
        chosen = chosen.refitted()
    settings = chosen.discarding(discard) if discard is not None else chosen.settings
    if order is not None:
        settings = replace(settings, criterion=FixedOrder(order))
    terminal = Terminal(quiet)
    stored = open_stored(checkpoint, terminal)
    name = f"{stored.path.name}-" + (f"discard-{discard:g}" if discard is not None else f"order-{order}")
    target = out or stored.path.parent.parent / "compressed" / name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another --out or delete it.")
    require_place("--out", target)
    dataset = load_data_of(stored, data, terminal)
    calibration = calibrate(stored, dataset, batches, terminal) if needs_data(chosen) else None
    before, size = evaluate_stored(stored, dataset, dataset.test, terminal), count(stored.model)
    report = compress_(stored.model, settings, calibration=calibration)
    after = evaluate_stored(stored, dataset, dataset.test, terminal)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, stored.model, extra={**stored.extra, "compression": report.to_dict()})
    for table in after_cut_tables(report, dataset, (size, count(stored.model)), (before, after)):
        print_table(terminal.out, table)
    terminal.out.print(f"New checkpoint: {target}", soft_wrap=True)
    return 0
