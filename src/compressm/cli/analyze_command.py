"""`compressm analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressm.cli.stopping import import_torch
from compressm.errors import ConfigError


def analyze(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its newest checkpoint).")],
    tolerances: Annotated[
        str, typer.Option(help="Fractions of the sum of Hankel singular values to discard.")
    ] = "0.1,0.05,0.02,0.01,0.001",
    preset: Annotated[str, typer.Option(help="Kind of balancing: default, data, white or paper.")] = "default",
    white: Annotated[bool, typer.Option("--white", help="Classical Gramians: use no data.")] = False,
    batches: Annotated[int, typer.Option(help="Training batches that the Gramians are measured on.", min=1)] = 2,
    data: Annotated[Path | None, typer.Option(help="Other data than the run's: a .npz file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes; default beside the checkpoint.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")] = False,
) -> int:
    """Show the Hankel singular values of a model, and the orders that each tolerance would give."""
    import_torch()
    from compressm.cli.console import Terminal
    from compressm.cli.folder import require_place
    from compressm.cli.loading import load_data_of
    from compressm.cli.parsing import convert
    from compressm.cli.recorder import count
    from compressm.cli.report.outlook import outlook_tables, spectrum_lines
    from compressm.cli.report.show import print_table
    from compressm.cli.report.spectra_picture import TWO_VALUES, draw_spectra
    from compressm.cli.report.style import FORMATS
    from compressm.cli.stored import open_stored
    from compressm.cli.stored_analysis import (
        calibrate,
        named_preset,
        needs_data,
        outlooks,
        require_fraction,
        without_data,
    )

    terminal = Terminal(quiet)
    fractions: tuple[float, ...] = convert(tuple[float, ...], tolerances, "--tolerances")  # type: ignore[assignment]
    for fraction in fractions:
        require_fraction("--tolerances", fraction)
    chosen = without_data(named_preset(preset)) if white else named_preset(preset)
    if picture is not None:
        require_place("--picture", picture)
        if picture.suffix.lower() not in FORMATS or picture.is_dir():
            raise ConfigError(f"--picture is {picture}; wanted a file whose name ends in {', '.join(FORMATS)}.")
    stored = open_stored(checkpoint, terminal)
    calibration = None
    if needs_data(chosen):
        calibration = calibrate(stored, load_data_of(stored, data, terminal), batches, terminal)
    found = outlooks(stored, chosen, fractions, calibration)
    for table in outlook_tables(found, count(stored.model)):
        print_table(terminal.out, table)
    target = picture or stored.path.parent / f"{stored.path.name}-spectra.png"
    more = any(len(layer.hankel_singular_values) > layer.order for layer in found[0].plan.layers)
    kept_up_to = "circle: what a tolerance keeps" + (f"; {TWO_VALUES}" if more else "")
    draw_spectra(target, spectrum_lines(found), title=f"Hankel singular values\n({kept_up_to})")
    terminal.say(f"Picture: {target}")
    return 0
