"""One look for all pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22303c"
MUTED = "#8a97a3"
ACCENT = "#c8452f"
COLOURS = ("#1f6f8b", "#e08e29", "#4f8a4c", "#8b5aa0", "#c8452f", "#5c6b77", "#b88a00", "#2b4c9b")
"""Told apart in print and by most colour-blind readers; lines also differ by marker or label."""

FORMATS = (".png", ".pdf", ".svg")
"""Ends of the names that a picture may have."""

_STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dfe4e8",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@contextmanager
def canvas(
    path: Path, rows: int, columns: int, size: tuple[float, float], *, share: bool = False
) -> Iterator[tuple[Figure, list[list[Axes]]]]:
    """A figure of rows x columns axes, saved to `path`, by its ending; `size` in inches. Needs no display."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=share)
        yield figure, [list(row) for row in axes]
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def grid_of(count: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most `most` a row."""
    columns = min(count, most)
    return -(-count // columns), columns


def hide_rest(axes: Sequence[Sequence[Axes]], used: int) -> None:
    """Remove the panels that nothing is drawn in."""
    for panel in [panel for row in axes for panel in row][used:]:
        panel.set_visible(False)


def mark_cuts(panel: Axes, steps: Sequence[int], *, label: bool = False) -> None:
    """A vertical line at each cut."""
    for number, step in enumerate(steps):
        panel.axvline(
            step, color=ACCENT, lw=1.1, ls=(0, (4, 3)), zorder=1, label="cut" if label and number == 0 else None
        )
