"""`compressm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressm.cli.stopping import import_torch
from compressm.errors import ConfigError

_Model, _Training, _Cuts, _Output = "Model", "Training", "Cuts", "Output"


_DATASETS = (
    "digits (default), smnist, fsdd, ucr:NAME, wiener-hammerstein, cascaded-tanks, pick-and-place, f16, "
    "heat-exchanger, ball-beam or robot-arm."
)


def _option(text: str, panel: str, *names: str) -> typer.models.OptionInfo:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


def train(
    dataset: Annotated[str | None, typer.Argument(help=_DATASETS, show_default=False)] = None,
    data: Annotated[
        Path | None, _option("Your own arrays: a .npz file with X and y (see the documentation).", "Data")
    ] = None,
    config: Annotated[Path | None, _option("Settings from a YAML file; flags win over it.", "Data")] = None,
    assign: Annotated[
        list[str] | None, _option("Any setting, such as training.log_every=5; may be repeated.", "Data", "--set")
    ] = None,
    layer: Annotated[
        str | None, _option("lru, dense, dss, d-linoss, linoss, lssl, rotations, s4, s4d or s5.", _Model)
    ] = None,
    init: Annotated[str | None, _option("Initial poles of dss, s4d or s5: legs, inv or lin.", _Model)] = None,
    discretization: Annotated[
        str | None,
        _option(
            "How a system is sampled: zoh or bilinear (s4d, s5), exp or softmax (dss), im or imex (linoss).", _Model
        ),
    ] = None,
    order: Annotated[int | None, _option("States of each layer at the start.", _Model)] = None,
    width: Annotated[int | None, _option("Channels.", _Model)] = None,
    blocks: Annotated[int | None, _option("Blocks.", _Model)] = None,
    dropout: Annotated[float | None, _option("Dropout.", _Model)] = None,
    bidirectional: Annotated[
        bool | None, _option("Two layers in each block, one of them backwards in time.", _Model)
    ] = None,
    steps: Annotated[int | None, _option("Optimizer steps.", _Training)] = None,
    batch_size: Annotated[int | None, _option("Sequences in a batch.", _Training)] = None,
    lr: Annotated[float | None, _option("Learning rate.", _Training)] = None,
    schedule: Annotated[str | None, _option("Learning rate after the warm-up: constant or cosine.", _Training)] = None,
    warmup: Annotated[int | None, _option("Steps of linear warm-up.", _Training)] = None,
    weight_decay: Annotated[float | None, _option("Weight decay (not on state space layers).", _Training)] = None,
    ssm_lr_factor: Annotated[
        float | None, _option("Learning rate of state space layers, as a part of --lr.", _Training)
    ] = None,
    seed: Annotated[int | None, _option("Of weights, batches and dropout.", _Training)] = None,
    threads: Annotated[int | None, _option("Threads of PyTorch.", _Training)] = None,
    eval_every: Annotated[int | None, _option("Steps between validations.", _Training)] = None,
    compress: Annotated[bool | None, _option("Whether to cut at all.", _Cuts, "--compress/--no-compress")] = None,
    preset: Annotated[
        str | None,
        _option(
            "Kind of balancing: default (by data and loss), data (without the loss), white (classical) or paper (as "
            "published).",
            _Cuts,
        ),
    ] = None,
    discard: Annotated[
        float | None,
        _option("Discard at most this fraction of the sum of Hankel singular values, each cut; else 0.02.", _Cuts),
    ] = None,
    cuts: Annotated[int | None, _option("Number of cuts, at equal distances in the window; else 4.", _Cuts)] = None,
    window: Annotated[str | None, _option("Steps between which cuts are made: first,last.", _Cuts)] = None,
    at: Annotated[str | None, _option("Cut at these steps: 100,200,400.", _Cuts)] = None,
    every: Annotated[int | None, _option("Cut every so many steps.", _Cuts)] = None,
    orders: Annotated[
        str | None, _option("The k-th cut goes to the k-th of these orders: 118,55,26,12.", _Cuts)
    ] = None,
    drop: Annotated[float | None, _option("Drop this fraction of the states at each cut.", _Cuts)] = None,
    refit: Annotated[
        bool | None, _option("Fit each layer to the inputs captured before its cut.", _Cuts, "--refit/--no-refit")
    ] = None,
    guard: Annotated[
        float | None, _option("Take a cut back if the validation metric gets worse by more than this.", _Cuts)
    ] = None,
    guard_probe: Annotated[int | None, _option("Steps after which the guard looks.", _Cuts)] = None,
    run: Annotated[Path | None, _option("The run folder; default runs/DATASET-DATE-TIME.", _Output)] = None,
    resume: Annotated[
        Path | None, _option("Go on with the run in this folder, exactly as if it had not stopped.", _Output)
    ] = None,
    checkpoint_every: Annotated[int | None, _option("Steps between checkpoints.", _Output)] = None,
    quiet: Annotated[bool, _option("Show results and errors only.", _Output, "--quiet", "-q")] = False,
) -> int:
    """Train a state space model that shrinks while it trains, and write a run folder with a report."""
    given = dict(locals())
    import_torch()
    from compressm.cli import session
    from compressm.cli.console import Terminal
    from compressm.cli.flags import settings_from
    from compressm.cli.parsing import parse_assignments
    from compressm.cli.recipes import resolve
    from compressm.cli.report.write import report
    from compressm.cli.team import joined

    with joined() as team:
        terminal = Terminal(quiet or team.rank > 0)
        settings = settings_from(
            {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        )
        if resume is not None:
            if settings or assign or config or dataset or run:
                raise ConfigError("--resume goes on with the settings of the run; give no other settings with it.")
            outcome = session.resume(resume, terminal, team)
        else:
            resolved = resolve(dataset, config, settings, parse_assignments(assign or []))
            outcome = session.start(resolved, run, terminal, team)
        if not outcome.complete:
            if team.rank == 0:
                terminal.insist(f"Stopped and saved. {outcome.folder.how_to_go_on}")
            return 130
        if team.rank == 0:
            report(outcome.folder, outcome.objective, terminal)
        return 0
