"""The report of a run from its records."""

from __future__ import annotations

from compressm.cli.objective import Objective
from compressm.cli.report.rows import cuts_table
from compressm.cli.report.show import markdown_table
from compressm.cli.report.summary import summarise
from compressm.cli.results import Results
from compressm.compress import compress_
from compressm.data.dataset import Task
from compressm.layers import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.settings import CompressionSettings


def test_gramians_that_could_not_be_used_are_told() -> None:
    report = compress_(LRU(3, 8), CompressionSettings(FixedOrder(4)))
    cut = {"kind": "cut", "step": 30, "report": report.to_dict(), "parameters": 5}
    start = {"kind": "start", "orders": {"": 8}, "parameters": 9}
    summary = summarise([start, cut], "accuracy", Results({"accuracy": 0.5}, {}, None, 1.0))
    shown = markdown_table(cuts_table(summary, Objective(Task.CLASSIFY)))
    assert len(report.layers[0].fallbacks) == 2
    for text in report.layers[0].fallbacks:
        assert f"Step 30, {report.layers[0].name}: {text}." in shown
