"""Impulse responses before and after each cut: one row a layer, one column a cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compressm.cli.report.style import ACCENT, COLOURS, MUTED, canvas
from compressm.cli.report.summary import LayerCut
from compressm.cli.responses import ResponsePair

_MOST = 4  # columns


def draw_responses(
    path: Path, cuts: Sequence[tuple[int, Mapping[str, ResponsePair]]], reports: Mapping[tuple[int, str], LayerCut]
) -> None:
    """The response of each layer's strongest channel pair, before (wide line) and after (thin line) each cut."""
    chosen = [cuts[round(k * (len(cuts) - 1) / (min(len(cuts), _MOST) - 1 or 1))] for k in range(min(len(cuts), _MOST))]
    names = list(chosen[0][1])
    with canvas(path, len(names), len(chosen), (max(7.2, 3.3 * len(chosen)), 2.6 * len(names) + 0.5)) as (figure, axes):
        for row, name in enumerate(names):
            for column, (step, pairs) in enumerate(chosen):
                panel, pair, report = axes[row][column], pairs[name], reports.get((step, name))
                panel.axhline(0, color=MUTED, lw=0.7)
                panel.plot(pair.before, color=COLOURS[0], lw=3.2, alpha=0.35, label="before")
                panel.plot(pair.after, color=ACCENT, lw=1.1, label="after")
                order = f": {report.before} → {report.after}" if report is not None else ""
                panel.set_title(f"{name}, step {step}{order}", fontsize=9)
                panel.set_xlim(0, len(pair.before) - 1)
                if column == 0:
                    panel.set_ylabel("response")
                if row == len(names) - 1:
                    panel.set_xlabel("lag (steps of the sequence)")
        axes[0][0].legend(loc="upper right")
        figure.suptitle("Impulse response of the strongest channel pair", x=0.01, ha="left", fontsize=12)
