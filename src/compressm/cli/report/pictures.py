"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressm.cli.folder import RunFolder
from compressm.cli.objective import Objective
from compressm.cli.report.response_picture import draw_responses
from compressm.cli.report.spectra_picture import TWO_VALUES, SpectrumLine, draw_spectra
from compressm.cli.report.style import ACCENT, COLOURS, INK, MUTED, canvas, mark_cuts
from compressm.cli.report.summary import Curve, RunSummary
from compressm.cli.responses import load_pairs


def draw_all(folder: RunFolder, summary: RunSummary, objective: Objective) -> dict[str, Path]:
    """Draw what the run has data for; what each picture shows and where it is."""
    pictures: dict[str, Path] = {}
    cuts = [cut for cut in summary.cuts if cut.order_after < cut.order_before]
    if cuts:
        path = folder.pictures / "spectra.png"
        more = any(len(layer.spectrum) > layer.before for cut in cuts for layer in cut.layers)
        kept_up_to = "circle: what a cut kept" + (f"; {TWO_VALUES}" if more else "")
        draw_spectra(path, _spectrum_lines(summary), f"Hankel singular values through training\n({kept_up_to})")
        pictures["Hankel singular values through training"] = path
    if summary.orders:
        path = folder.pictures / "orders.png"
        _draw_orders(path, summary)
        pictures["Order of each layer"] = path
    if summary.loss:
        path = folder.pictures / "loss.png"
        _draw_loss(path, summary, objective)
        pictures["Loss and validation, with the cuts"] = path
    responses = [(cut.step, folder.response_file(cut.step)) for cut in cuts]
    kept = [(step, load_pairs(file)) for step, file in responses if file.is_file()]
    if kept:
        path = folder.pictures / "responses.png"
        draw_responses(path, kept, {(cut.step, layer.layer): layer for cut in cuts for layer in cut.layers})
        pictures["Impulse responses before and after each cut"] = path
    return pictures


def _spectrum_lines(summary: RunSummary) -> dict[str, list[SpectrumLine]]:
    lines: dict[str, list[SpectrumLine]] = {}
    for cut in summary.cuts:
        for layer in cut.layers:
            if layer.spectrum:
                label = f"step {cut.step}: {layer.before} → {layer.after}"
                per_slot = max(1, round(len(layer.spectrum) / layer.before))
                lines.setdefault(layer.layer, []).append(
                    SpectrumLine(label, layer.spectrum, {"": layer.after * per_slot}, layer.channels)
                )
    for name, values in summary.end_spectra.items():
        if name in lines and values:
            lines[name].append(SpectrumLine(f"end (step {summary.steps})", values))
    return lines


def _draw_orders(path: Path, summary: RunSummary) -> None:
    with canvas(path, 1, 1, (7.2, 3.8)) as (_, axes):
        panel = axes[0][0]
        taken: list[int] = []
        for number, (name, series) in enumerate(summary.orders.items()):
            colour = COLOURS[number % len(COLOURS)]
            steps = [step for step, _ in series] + [summary.steps]
            orders = [order for _, order in series] + [series[-1][1]]
            panel.step(steps, orders, where="post", color=colour, label=name)
            panel.plot(steps[:-1], orders[:-1], "o", color=colour, ms=4)
            offset = 9 * sum(abs(orders[-1] - other) < 0.05 * orders[0] for other in taken)
            taken.append(orders[-1])
            panel.annotate(
                str(orders[-1]),
                (steps[-1], orders[-1]),
                (5, offset),
                textcoords="offset points",
                color=colour,
                va="center",
            )
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.set(title="Order of each layer", xlabel="optimizer step", ylabel="order (stored states)")
        panel.legend(title="layer", title_fontsize=9)


def _draw_loss(path: Path, summary: RunSummary, objective: Objective) -> None:
    cuts = [cut.step for cut in summary.cuts if cut.order_after < cut.order_before]
    with canvas(path, 2, 1, (7.2, 5.6), share=True) as (_, axes):
        upper, lower = axes[0][0], axes[1][0]
        _line(upper, summary.loss, color=MUTED, lw=0.9, alpha=0.7, label="mean of a few steps")
        _line(upper, _smooth(summary.loss), color=COLOURS[0], label="running mean")
        mark_cuts(upper, cuts, label=True)
        upper.set_yscale("log")
        upper.set(title="Training loss", ylabel="loss")
        upper.legend(ncols=3, loc="upper right")
        scale = 100 if objective.higher_is_better else 1
        name = f"{objective.metric} (%)" if scale == 100 else objective.metric
        _line(
            lower,
            [(s, scale * v) for s, v in summary.validation],
            color=COLOURS[0],
            marker="o",
            ms=3.5,
            label="validation",
        )
        pairs = [
            c for c in summary.cuts if c.metric_before is not None and c.metric_after is not None and c.step in cuts
        ]
        lower.plot(
            [c.step for c in pairs],
            [scale * (c.metric_before or 0) for c in pairs],
            "o",
            mfc="none",
            mec=INK,
            mew=1.4,
            ms=9,
            label="right before a cut",
            ls="",
        )
        lower.plot(
            [c.step for c in pairs],
            [scale * (c.metric_after or 0) for c in pairs],
            "o",
            color=ACCENT,
            ms=5,
            zorder=3,
            label="right after it",
            ls="",
        )
        mark_cuts(lower, cuts)
        lower.set_xlim(0, summary.steps)
        lower.set(title=f"Validation {objective.metric}", xlabel="optimizer step", ylabel=name)
        lower.legend(loc="lower right" if objective.higher_is_better else "upper right")


def _line(panel: Any, curve: Sequence[tuple[int, float]], **style: Any) -> None:
    panel.plot([x for x, _ in curve], [y for _, y in curve], **style)


def _smooth(curve: Curve) -> Curve:
    """The running mean over about a twentieth of the curve."""
    half = max(1, len(curve) // 40)
    smooth: Curve = []
    for number, (step, _) in enumerate(curve):
        part = [value for _, value in curve[max(0, number - half) : number + half + 1]]
        smooth.append((step, sum(part) / len(part)))
    return smooth
