"""Hankel singular values: one panel a layer, one line a spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressm.cli.report.style import ACCENT, COLOURS, INK, canvas, grid_of, hide_rest

TWO_VALUES = "two values for each stored complex state"
"""Why there can be more values than states."""

_DECADES = 8  # what lies further below the largest value is round-off or close to it


@dataclass(frozen=True)
class SpectrumLine:
    """One spectrum, largest value first, with labelled numbers of values that a cut keeps (an empty label: no text).

    `channels` are the spectra of a bank's systems that the line stands for.
    """

    label: str
    values: Sequence[float]
    kept: Mapping[str, int] = field(default_factory=dict)
    channels: Sequence[Sequence[float]] = ()


def draw_spectra(path: Path, layers: Mapping[str, Sequence[SpectrumLine]], title: str) -> None:
    """Values relative to the largest of each line, on a logarithmic scale; a circle where each cut keeps up to.

    The channels of a bank are thin lines behind, each relative to its own largest value.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    rows, columns = grid_of(len(layers))
    with canvas(path, rows, columns, (max(7.2, 4.6 * columns), 4.0 * rows)) as (figure, axes):
        panels = [panel for row in axes for panel in row]
        for panel, (name, lines) in zip(panels, layers.items(), strict=False):
            for number, line in enumerate(lines):
                colour = colormaps["viridis"](0.85 * number / max(len(lines) - 1, 1)) if len(lines) > 1 else COLOURS[0]
                for channel in line.channels:
                    panel.plot(*_curve(_relative(channel)), color=colour, lw=0.6, alpha=0.25, zorder=1)
                shown = _relative(line.values)
                panel.plot(*_curve(shown), color=colour, label=line.label)
                for label, kept in line.kept.items():
                    if not 0 < kept < len(shown):
                        continue
                    point = (kept, max(shown[kept - 1], 10**-_DECADES))
                    panel.plot(*point, "o", color=colour, mec=ACCENT, mew=1.4, ms=6, zorder=3)
                    if label:
                        panel.annotate(label, point, (6, 5), textcoords="offset points", fontsize=8, color=INK)
            panel.set_yscale("log")
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set(title=name, xlabel="index i", ylabel=r"$\sigma_i\,/\,\sigma_1$")
            if lines:
                panel.legend(loc="best")
        hide_rest(axes, len(layers))
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def _relative(values: Sequence[float]) -> list[float]:
    largest = max(max(values, default=0.0), 1e-300)
    return [max(value / largest, 0.0) for value in values]


def _curve(shown: Sequence[float]) -> tuple[range, list[float]]:
    return range(1, len(shown) + 1), [value if value > 10**-_DECADES else float("nan") for value in shown]
