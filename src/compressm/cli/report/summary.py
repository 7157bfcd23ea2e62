"""The story of a run, read back from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressm.cli.metrics import Record
from compressm.cli.results import Results
from compressm.training.history import Cut, RolledBack, Skipped
from compressm.training.loop import Moment

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class LayerCut:
    """One layer in one cut; what was not measured is None."""

    layer: str
    before: int
    after: int
    discarded: float | None
    bound: float | None
    hinf: float | None
    h2: float | None
    change: float | None
    sources: str
    spectrum: list[float]
    channels: list[list[float]]
    fallbacks: tuple[str, ...] = ()
    fit_before: float | None = None
    fit_after: float | None = None


@dataclass(frozen=True)
class CutSummary:
    """One cut with the metric on the validation split right before and right after it."""

    step: int
    layers: tuple[LayerCut, ...]
    seconds: float
    metric_before: float | None = None
    metric_after: float | None = None
    taken_back_at: int | None = None

    @property
    def order_before(self) -> int:
        """States of all layers before the cut."""
        return sum(layer.before for layer in self.layers)

    @property
    def order_after(self) -> int:
        """States of all layers after the cut."""
        return sum(layer.after for layer in self.layers)


@dataclass(frozen=True)
class RunSummary:
    """Curves, cuts and figures of a run. `full` is the last state before the first cut, `end` that at the end."""

    metric: str
    orders: dict[str, list[tuple[int, int]]]
    parameters: tuple[int, int]
    loss: Curve
    validation: Curve
    cuts: tuple[CutSummary, ...]
    skipped: tuple[tuple[int, str], ...]
    steps: int
    full_step: int
    full_metric: float | None
    end_metric: float | None
    full_seconds: float | None
    end_seconds: float
    test: float
    end_spectra: dict[str, list[float]]

    @property
    def total_orders(self) -> tuple[int, int]:
        """States of all layers at the start and at the end."""
        return sum(s[0][1] for s in self.orders.values()), sum(s[-1][1] for s in self.orders.values())


def summarise(records: Sequence[Record], metric: str, results: Results) -> RunSummary:
    """The summary of the records and the results of one run; `metric` names the metric."""
    start: Record = next((r for r in records if r["kind"] == "start"), {"orders": {}, "parameters": 0})
    cuts, orders, parameters = _cuts(records, metric, start)
    trained = [r for r in records if r["kind"] == "train"]
    evaluated = [r for r in records if r["kind"] == "evaluation"]
    real = [cut.step for cut in cuts if cut.order_after < cut.order_before]
    before = [r for r in evaluated if real and r["step"] <= real[0] and r["moment"] != Moment.AFTER_CUT.value]
    full = before[-1] if before else None
    end = evaluated[-1] if evaluated else None
    return RunSummary(
        metric=metric,
        orders=orders,
        parameters=(start["parameters"], parameters),
        loss=[(r["step"], r["loss"]) for r in trained if r["loss"] is not None],
        validation=[(r["step"], r[metric]) for r in evaluated if r.get(metric) is not None],
        cuts=cuts,
        skipped=tuple((r["step"], r["reason"]) for r in records if r["kind"] == Skipped.kind),
        steps=trained[-1]["step"] if trained else 0,
        full_step=full["step"] if full else 0,
        full_metric=full[metric] if full else None,
        end_metric=end[metric] if end else None,
        full_seconds=results.full_step,
        end_seconds=results.end_step,
        test=results.test[metric],
        end_spectra=results.spectra,
    )


def _cuts(
    records: Sequence[Record], metric: str, start: Record
) -> tuple[tuple[CutSummary, ...], dict[str, list[tuple[int, int]]], int]:
    """Cuts, each layer's order over the steps, and the number of parameters at the end."""
    orders = {name: [(0, order)] for name, order in start["orders"].items()}
    parameters = start["parameters"]
    cuts: list[CutSummary] = []
    for record in records:
        if record["kind"] == Cut.kind:
            layers = tuple(_layer(layer) for layer in record["report"]["layers"])
            cuts.append(
                CutSummary(
                    record["step"],
                    layers,
                    record["report"].get("seconds") or 0.0,
                    _metric_at(records, record["step"], Moment.BEFORE_CUT, metric),
                    _metric_at(records, record["step"], Moment.AFTER_CUT, metric),
                )
            )
            for layer in layers:
                orders.setdefault(layer.layer, [(0, layer.before)]).append((record["step"], layer.after))
        elif record["kind"] == RolledBack.kind:
            for layer in record["report"]["layers"]:
                orders[layer["name"]].append((record["step"], layer["order_before"]))
            taken = cuts.pop()
            cuts.append(CutSummary(**{**vars(taken), "taken_back_at": record["step"]}))
        parameters = record.get("parameters", parameters)
    return tuple(cuts), orders, parameters


def _layer(layer: Record) -> LayerCut:
    return LayerCut(
        layer["name"],
        layer["order_before"],
        layer["order_after"],
        layer.get("discarded"),
        layer.get("bound"),
        layer.get("hinf_error"),
        layer.get("h2_error"),
        layer.get("output_change"),
        f"{layer.get('controllability', '?')} / {layer.get('observability', '?')}",
        layer.get("hankel_singular_values") or [],
        (layer.get("bank") or {}).get("values") or [],
        tuple(layer.get("fallbacks") or ()),
        layer.get("fit_before"),
        layer.get("fit_after"),
    )


def _metric_at(records: Sequence[Record], step: int, moment: Moment, metric: str) -> float | None:
    found = [r for r in records if r["kind"] == "evaluation" and r["step"] == step and r["moment"] == moment.value]
    return found[0].get(metric) if found else None
