"""What `compressm analyze` shows."""

from __future__ import annotations

from collections.abc import Sequence

from compressm.cli.report.rows import Table
from compressm.cli.report.spectra_picture import SpectrumLine
from compressm.cli.stored_analysis import Outlook
from compressm.reduction.report import LayerPlan

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def outlook_tables(outlooks: Sequence[Outlook], parameters: int) -> tuple[Table, Table]:
    """The spectra at a few indices, and the orders for each tolerance; `parameters` is what the model has now."""
    layers = outlooks[0].plan.layers
    spectra = []
    for layer in layers:
        gramians = f"{layer.controllability} / {layer.observability}"
        for name, values in _spectra(layer):
            picked = [values[round(f * (len(values) - 1))] for f in _FRACTIONS] if values else []
            row = (name, str(layer.order), gramians, str(len(values)))
            spectra.append(row + tuple(f"{value:.2e}" for value in picked))
    where = ("largest", *(f"at {100 * f:.0f} %" for f in _FRACTIONS[1:-1]), "smallest")
    first = Table(
        "Hankel singular values",
        ("layer", "order", "Gramians", "values", *where),
        tuple(spectra),
        "Gramians: of controllability / of observability. A stored complex state of a layer with real output counts as "
        "two values under real balancing. A layer with a system for each channel shows their mean, the largest and the "
        "median over the channels.",
        ("values", "at 25 %", "at 75 %"),
    )
    rows = [
        (layer.name, str(layer.order), *(str(outlook.plan.layers[number].planned_order) for outlook in outlooks))
        for number, layer in enumerate(layers)
    ]
    rows.append(("parameters", f"{parameters:,}", *(_count(outlook.parameters) for outlook in outlooks)))
    second = Table(
        "Orders that each tolerance would give",
        ("", "now", *(f"{outlook.discard:g}" for outlook in outlooks)),
        tuple(rows),
        "One cut, no training after it. A real pole takes a whole complex state, so a cut can end slightly higher.",
    )
    return first, second


def _count(parameters: int | None) -> str:
    return "refused" if parameters is None else f"{parameters:,}"


def _spectra(layer: LayerPlan) -> list[tuple[str, tuple[float, ...]]]:
    """A layer's values with what they are of: the layer, or the mean, largest and median of a bank's systems."""
    if layer.bank is None:
        return [(layer.name, layer.hankel_singular_values)]
    of = f"of {layer.bank.systems} channels"
    return [
        (f"{layer.name}, mean {of}", layer.hankel_singular_values),
        (f"{layer.name}, largest {of}", layer.bank.largest),
        (f"{layer.name}, median {of}", layer.bank.median),
    ]


def spectrum_lines(outlooks: Sequence[Outlook]) -> dict[str, list[SpectrumLine]]:
    """One line a layer, with a mark for each tolerance; for a bank also its channels, the largest and the median."""
    lines: dict[str, list[SpectrumLine]] = {}
    for number, layer in enumerate(outlooks[0].plan.layers):
        marks = {f"{o.discard:g}": o.plan.layers[number].planned_states for o in outlooks}
        channels = () if layer.bank is None else layer.bank.values
        lines[layer.name] = [SpectrumLine(f"order {layer.order}", layer.hankel_singular_values, marks, channels)]
        if layer.bank is not None:
            lines[layer.name].append(SpectrumLine("largest channel", layer.bank.largest, {}))
            lines[layer.name].append(SpectrumLine("median channel", layer.bank.median, {}))
    return lines
