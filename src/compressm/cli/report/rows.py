"""The rows of the tables, as text, for the terminal and for report.md alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressm.cli.objective import Objective
from compressm.cli.report.summary import CutSummary, LayerCut, RunSummary
from compressm.reduction.report import LayerReport

_FIT = (
    "Fit: relative error of the layer's output on captured sequences that the fit did not see, by balancing alone → "
    "after the fit to the captured inputs."
)


@dataclass(frozen=True)
class Table:
    """A table of text; all columns but the first are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    optional: tuple[str, ...] = ()  # columns that a narrow terminal does without, the first one first
    legend: tuple[tuple[str, str], ...] = ()  # a column's name and what it holds, told where the column is shown

    def text_below(self, shown: Sequence[str]) -> str:
        """What stands below the table where these columns are shown."""
        legend = " ".join(text for column, text in self.legend if column in shown)
        return "\n".join(filter(None, (legend, self.note)))


LEGEND = (
    ("discarded", "Discarded: fraction of the sum of Hankel singular values."),
    ("bound", "Bound: on the H∞ error, for Gramians of white input only."),
    ("H∞ error", "H∞ error: a lower estimate."),
    ("output change", "Output change: relative, on the inputs captured before the cut."),
)
"""Of the columns that tell what a cut did to a layer."""


def result_table(summary: RunSummary, objective: Objective) -> Table:
    """Uncompressed start against end."""
    first, last = summary.total_orders
    before, after = summary.parameters
    rows = [
        ("order, all layers", str(first), str(last), _ratio(first, last)),
        ("parameters", f"{before:,}", f"{after:,}", _ratio(before, after)),
        (
            "training step",
            _milliseconds(summary.full_seconds),
            _milliseconds(summary.end_seconds),
            _ratio(summary.full_seconds, summary.end_seconds),
        ),
        (
            f"validation {objective.metric}",
            objective.show(summary.full_metric),
            objective.show(summary.end_metric),
            "",
        ),
        (f"test {objective.metric}", "", objective.show(summary.test), ""),
    ]
    full = f"uncompressed (step {summary.full_step})" if summary.full_metric is not None else "uncompressed"
    return Table("Result", ("", full, f"end (step {summary.steps})", "smaller by"), tuple(rows))


def orders_table(summary: RunSummary) -> Table:
    """Each layer's order from start to end."""
    rows = []
    for name, series in summary.orders.items():
        path = " → ".join(str(order) for order in _without_repeats([order for _, order in series]))
        rows.append((name, str(series[0][1]), str(series[-1][1]), path))
    return Table("Order of each layer", ("layer", "start", "end", "by cuts"), tuple(rows))


def cuts_table(summary: RunSummary, objective: Objective) -> Table:
    """Every cut, one row a layer."""
    rows: list[tuple[str, ...]] = []
    for cut in summary.cuts:
        for k, layer in enumerate(cut.layers):
            rows.append(_cut_row(cut, layer, objective, first=k == 0))
    columns = (
        "step",
        "layer",
        "order",
        "discarded",
        "bound",
        "H∞ error",
        "H2 error",
        "output change",
        f"validation {objective.metric}",
    )
    legend = (columns[-1], "Validation: right before and right after the cut, with no training step in between.")
    taken = [
        f"Step {c.step}: taken back at step {c.taken_back_at}." for c in summary.cuts if c.taken_back_at is not None
    ]
    notes = [
        f"Step {cut.step}, {layer.layer}: {text}."
        for cut in summary.cuts
        for layer in cut.layers
        for text in layer.fallbacks
    ]
    note = " ".join([*taken, *notes]) if rows else "No cut was made."
    layers = [layer for cut in summary.cuts for layer in cut.layers]
    bounded = any(layer.bound is not None for layer in layers)
    least = ("discarded", "H2 error", "H∞ error") if bounded else ("bound", "discarded", "H2 error")
    return with_fits(Table("Cuts", columns, tuple(rows), note, least, (*LEGEND, legend) if rows else ()), layers)


def with_fits(table: Table, layers: Sequence[LayerCut | LayerReport]) -> Table:
    """The table, whose rows are these layers, with what fits to captured inputs gained, where there is one."""
    if all(layer.fit_after is None for layer in layers):
        return table
    rows = tuple((*row, _gain(layer)) for row, layer in zip(table.rows, layers, strict=True))
    note = "\n".join(filter(None, (table.note, _FIT)))
    return replace(table, columns=(*table.columns, "fit"), rows=rows, note=note)


def _gain(layer: LayerCut | LayerReport) -> str:
    if layer.fit_after is None:
        return "-"
    return f"{percent(layer.fit_before)} → {percent(layer.fit_after)}"


def _cut_row(cut: CutSummary, layer: LayerCut, objective: Objective, *, first: bool) -> tuple[str, ...]:
    return (
        f"{cut.step}{'' if cut.taken_back_at is None else ' *'}" if first else "",
        layer.layer,
        f"{layer.before} → {layer.after}",
        percent(layer.discarded),
        number(layer.bound),
        number(layer.hinf),
        number(layer.h2),
        percent(layer.change),
        f"{objective.show(cut.metric_before)} → {objective.show(cut.metric_after)}" if first else "",
    )


def _without_repeats(values: list[int]) -> list[int]:
    return [value for k, value in enumerate(values) if k == 0 or value != values[k - 1]]


def _ratio(before: float | None, after: float | None) -> str:
    return f"{before / after:.1f} x" if before and after else ""


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f} ms"


def number(value: float | None) -> str:
    """Three significant digits; a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A fraction in per cent; a dash for None."""
    return "-" if value is None else f"{100 * value:.2f} %"
