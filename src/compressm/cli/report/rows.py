"""The rows of the tables, as text, for the terminal and for report.md alike."""

from __future__ import annotations

from dataclasses import dataclass

from compressm.cli.objective import Objective
from compressm.cli.report.summary import CutSummary, LayerCut, RunSummary


@dataclass(frozen=True)
class Table:
    """A table of text; all columns but the first are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def result_table(summary: RunSummary, objective: Objective) -> Table:
    """Uncompressed start against end."""
    first, last = summary.total_orders
    before, after = summary.parameters
    rows = [
        ("order (states of all layers)", str(first), str(last), _ratio(first, last)),
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
        f"{objective.metric} before",
        "after",
    )
    note = (
        "Discarded: fraction of the sum of Hankel singular values. Bound: 2 x the discarded sum, for white input only. "
        "H∞: a lower estimate. Output change: relative, on the inputs captured before the cut. Before and after: on "
        "the validation split, with no training step in between."
    )
    return Table("Cuts", columns, tuple(rows), note if rows else "No cut was made.")


def _cut_row(cut: CutSummary, layer: LayerCut, objective: Objective, *, first: bool) -> tuple[str, ...]:
    taken = f" (taken back at {cut.taken_back_at})" if cut.taken_back_at is not None else ""
    return (
        f"{cut.step}{taken}" if first else "",
        layer.layer,
        f"{layer.before} → {layer.after}",
        percent(layer.discarded),
        number(layer.bound),
        number(layer.hinf),
        number(layer.h2),
        percent(layer.change),
        objective.show(cut.metric_before) if first else "",
        objective.show(cut.metric_after) if first else "",
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
