"""What a compressor did, as numbers for a trainer's loggers and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from compressm.training.compressor import InTrainingCompressor
from compressm.training.history import Cut, Event, RolledBack, Skipped
from compressm.training.summary import TrainingSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "compressm"
PICTURE = f"{PREFIX}/hankel_singular_values"
"""The name under which loggers get the picture."""

_LOWEST = 1e-8  # relative to the largest value; below is round-off or close to it


def order_metrics(orders: Mapping[str, int]) -> dict[str, float]:
    """`compressm/order/<layer>` for each layer."""
    return {_name("order", layer): float(order) for layer, order in orders.items()}


def event_metrics(events: Iterable[Event], compressor: InTrainingCompressor) -> dict[str, float]:
    """Numbers that tell of the events of one step; none where there are no events.

    The orders of all layers, and the median seconds of a step at the size before; after a cut for each layer the
    discarded part of the sum of its Hankel singular values and the relative change of its output where inputs were
    captured, where the layer was fitted its error before and after that, and the seconds the cut took; after a
    roll-back the metric before the cut and when it was judged; `skipped` after a cut that could not be made.
    """
    metrics: dict[str, float] = {}
    for event in events:
        metrics |= order_metrics(compressor.orders())
        sizes = compressor.summary().sizes
        if sizes and sizes[-1].seconds_per_step is not None:
            metrics[_name("step_seconds")] = sizes[-1].seconds_per_step
        if isinstance(event, Cut):
            metrics[_name("cut_seconds")] = event.report.seconds
            for layer in event.report.layers:
                metrics[_name("discarded", layer.name)] = layer.discarded
                if layer.output_change is not None:
                    metrics[_name("output_change", layer.name)] = layer.output_change
                if layer.fit_before is not None and layer.fit_after is not None:
                    metrics[_name("fit_before", layer.name)] = layer.fit_before
                    metrics[_name("fit_after", layer.name)] = layer.fit_after
        elif isinstance(event, RolledBack):
            metrics |= {_name("rolled_back_from"): event.before, _name("rolled_back_at"): event.after}
        elif isinstance(event, Skipped):
            metrics[_name("skipped")] = 1.0
    return metrics


def summary_metrics(summary: TrainingSummary) -> dict[str, float]:
    """What a run took (see `TrainingSummary`), where it was measured; `step_seconds` is of the last size."""
    seconds = summary.sizes[-1].seconds_per_step if summary.sizes else None
    values = {
        "step_seconds": seconds,
        "total_cut_seconds": summary.cut_seconds,
        "saved_seconds": summary.saved_seconds,
        "saved_fraction": summary.saved_fraction,
        "peak_memory": summary.peak_memory,
        "peak_device_memory": summary.peak_device_memory,
    }
    return {_name(name): float(value) for name, value in values.items() if value is not None}


def last_cut(events: Iterable[Event]) -> Cut | None:
    """The last cut among the events, None where there is none."""
    return next((event for event in reversed(tuple(events)) if isinstance(event, Cut)), None)


def draw_spectra(cut: Cut) -> Figure:
    """One line a layer: its Hankel singular values relative to the largest; a circle at the last one that is kept.

    Needs matplotlib and no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for layer in cut.report.layers:
        values = layer.hankel_singular_values
        largest = max(values, default=0.0) or 1.0
        shown = [max(value / largest, _LOWEST) for value in values]
        label = f"{layer.name or 'model'}: {layer.order_before} to {layer.order_after}"
        (line,) = axes.plot(range(1, len(shown) + 1), shown, label=label)
        kept = min(len(shown), layer.order_after * -(-len(shown) // max(layer.order_before, 1)))
        if kept > 0:
            axes.plot(kept, shown[kept - 1], "o", color=line.get_color())
    axes.set(yscale="log", xlabel="index i", ylabel=r"$\sigma_i\,/\,\sigma_1$", title=f"Cut after step {cut.step}")
    if cut.report.layers:
        axes.legend(fontsize="small")
    return figure


def _name(what: str, layer: str | None = None) -> str:
    return f"{PREFIX}/{what}" if layer is None else f"{PREFIX}/{what}/{layer or 'model'}"
