"""What `compressm analyze` shows."""

from __future__ import annotations

from collections.abc import Sequence

from compressm.cli.report.rows import Table
from compressm.cli.report.spectra_picture import SpectrumLine
from compressm.cli.stored_analysis import Outlook

_FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def outlook_tables(outlooks: Sequence[Outlook]) -> tuple[Table, Table]:
    """The spectra at a few indices, and the orders for each tolerance."""
    layers = outlooks[0].plan.layers
    spectra = []
    for layer in layers:
        values = layer.hankel_singular_values
        picked = [values[round(f * (len(values) - 1))] for f in _FRACTIONS] if values else []
        row = (layer.name, str(layer.order), f"{layer.controllability} / {layer.observability}", str(len(values)))
        spectra.append(row + tuple(f"{value:.2e}" for value in picked))
    where = ("largest", *(f"at {100 * f:.0f} %" for f in _FRACTIONS[1:-1]), "smallest")
    first = Table(
        "Hankel singular values",
        ("layer", "order", "Gramians (P / Q)", "values", *where),
        tuple(spectra),
        "Sorted; a stored complex state of a layer with real output counts as two values under real balancing.",
    )
    rows = []
    for outlook in outlooks:
        orders = [f"{layer.order} → {layer.planned_order}" for layer in outlook.plan.layers]
        rows.append((f"{outlook.discard:g}", *orders, f"{outlook.parameters:,}"))
    second = Table(
        "Orders that each tolerance would give",
        ("discard", *(layer.name for layer in layers), "parameters"),
        tuple(rows),
        "One cut, no training after it. A real pole takes a whole complex state, so a cut can end slightly higher.",
    )
    return first, second


def spectrum_lines(outlooks: Sequence[Outlook]) -> dict[str, list[SpectrumLine]]:
    """One line a layer, with a mark for each tolerance."""
    lines: dict[str, list[SpectrumLine]] = {}
    for number, layer in enumerate(outlooks[0].plan.layers):
        marks = {f"{o.discard:g}": o.plan.layers[number].planned_states for o in outlooks}
        lines[layer.name] = [SpectrumLine(f"order {layer.order}", layer.hankel_singular_values, marks)]
    return lines
