"""The table of what a run took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressm.cli.report.rows import Table

_NOTE = (
    "Median step: wall time of the run's own steps at that size, without those during which something was evaluated or "
    "captured. Uncut, estimated: all steps at the uncut size's median. Evaluations and checkpoints are in neither. "
    "Peak memory: of the whole process."
)


def time_table(run: Mapping[str, Any]) -> Table:
    """The rows of `TrainingSummary.to_dict`; what was not measured is a dash."""
    whole = run["sizes"][0]["seconds_per_step"] if run["uncut_seconds"] is not None else None
    rows = [_size_row(size, whole) for size in run["sizes"]]
    for name, key in (
        ("analysis and cuts", "cut_seconds"),
        ("captures", "capture_seconds"),
        ("guard", "guard_seconds"),
    ):
        if run[key] > 0:
            rows.append((name, "", "", _seconds(run[key])))
    rows.append(("together", str(run["steps"]), "", _seconds(run["training_seconds"])))
    if len(run["sizes"]) > 1:
        rows.append(("uncut, estimated", str(run["steps"]), _milliseconds(whole), _seconds(run["uncut_seconds"])))
        rows.append(("saved, estimated", "", _percent(run["saved_fraction"]), _seconds(run["saved_seconds"])))
    for name, key in (("peak memory", "peak_memory"), ("peak memory, device", "peak_device_memory")):
        if run[key] is not None:
            rows.append((name, "", "", f"{run[key] / 2**20:,.0f} MiB"))
    return Table("Time and memory", ("", "steps", "median step", "total"), tuple(rows), _NOTE)


def _size_row(size: Mapping[str, Any], whole: float | None) -> tuple[str, str, str, str]:
    median = size["seconds_per_step"]
    typical = whole if median is None else median
    total = None if typical is None else size["steps"] * typical
    return f"order {sum(size['orders'].values())}", str(size["steps"]), _milliseconds(median), _seconds(total)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f} ms"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
