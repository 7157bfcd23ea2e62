"""`compressm eval`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from compressm.cli.stopping import import_torch

_FURTHER = (("rmse", "{:.4g}"), ("fit", "{:.1f} %"), ("loss", "{:.4f}"))


class SplitName(Enum):
    """A split of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its newest checkpoint).")],
    split: Annotated[SplitName, typer.Option(help="Which part of the data.")] = SplitName.TEST,
    data: Annotated[Path | None, typer.Option(help="Other data than the run's: a .npz file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")] = False,
) -> int:
    """Evaluate a model on the test split (or another one) of its data."""
    import_torch()
    from compressm.cli.console import Terminal
    from compressm.cli.loading import load_data_of
    from compressm.cli.objective import Objective
    from compressm.cli.recorder import count, layer_orders
    from compressm.cli.report.rows import Table
    from compressm.cli.report.show import print_table
    from compressm.cli.stored import evaluate_stored, open_stored

    terminal = Terminal(quiet)
    stored = open_stored(checkpoint, terminal)
    dataset = load_data_of(stored, data, terminal)
    parts = {SplitName.TRAIN: dataset.train, SplitName.VALIDATION: dataset.validation, SplitName.TEST: dataset.test}
    scores = evaluate_stored(stored, dataset, parts[split], terminal)
    objective = Objective.of(dataset)
    rows = (
        (f"{split.value} {objective.metric}", objective.show(scores[objective.metric])),
        *(
            (f"{split.value} {name}", text.format(scores[name]))
            for name, text in _FURTHER
            if name in scores and name != objective.metric
        ),
        ("cases", f"{parts[split].cases:,}"),
        ("orders", ", ".join(str(order) for order in layer_orders(stored.model).values())),
        ("parameters", f"{count(stored.model):,}"),
    )
    terminal.say(f"Checkpoint: {stored.path}")
    print_table(terminal.out, Table("Evaluation", ("", dataset.name), rows))
    return 0
