"""What `compressm compress` shows."""

from __future__ import annotations

from collections.abc import Mapping

from compressm.cli.objective import Objective
from compressm.cli.report.rows import LEGEND, Table, number, percent, with_fits
from compressm.data.dataset import Dataset
from compressm.reduction.report import CompressionReport


def after_cut_tables(
    report: CompressionReport,
    dataset: Dataset,
    parameters: tuple[int, int],
    scores: tuple[Mapping[str, float], Mapping[str, float]],
) -> tuple[Table, Table]:
    """The model before and after one cut, and what was done to each layer."""
    objective = Objective.of(dataset)
    before, after = (score[objective.metric] for score in scores)
    rows = (
        ("parameters", f"{parameters[0]:,}", f"{parameters[1]:,}"),
        (f"test {objective.metric}", objective.show(before), objective.show(after)),
    )
    layers = tuple(
        (
            layer.name,
            f"{layer.order_before} → {layer.order_after}",
            percent(layer.discarded),
            number(layer.bound),
            number(layer.hinf_error),
            number(layer.h2_error),
            percent(layer.output_change),
            f"{layer.controllability} / {layer.observability}",
        )
        for layer in report.layers
    )
    columns = ("layer", "order", "discarded", "bound", "H∞ error", "H2 error", "output change", "Gramians")
    notes = [f"{layer.name}: {text}" for layer in report.layers for text in layer.fallbacks]
    done = Table("Layers", columns, layers, "\n".join(notes), ("H2 error", "discarded", "Gramians", "bound"), LEGEND)
    return Table("Model", ("", "before", "after"), rows), with_fits(done, report.layers)
