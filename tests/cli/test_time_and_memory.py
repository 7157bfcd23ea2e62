"""What a run took is told at its end, whether it was cut, stopped or neither."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressm.cli import recorder
from compressm.cli.report.show import markdown_table
from compressm.cli.report.time_rows import time_table

Command = Callable[..., Any]


def test_the_results_tell_what_the_run_took(finished: Path) -> None:
    run = json.loads((finished / "results.json").read_text())["run"]
    assert [size["steps"] for size in run["sizes"]] == [6, 6, 12]
    assert run["cuts"] == 2 and run["cut_seconds"] > 0 and run["peak_memory"] > 2**20
    assert run["sizes"][0]["measured"] < 5 and run["saved_seconds"] is None  # captures and evaluations are left out
    report = (finished / "report.md").read_text()
    assert "## Time and memory" in report and f"{run['peak_memory'] / 2**20:,.0f} MiB" in report


def test_a_saving_is_told_where_the_uncut_size_was_measured(command: Command, tiny: list[str], tmp_path: Path) -> None:
    result = command("train", "-q", "--run", tmp_path / "run", *tiny, "--at", "12", "--orders", "4", "--eval-every", 24)
    assert result.code == 0
    run = json.loads((tmp_path / "run" / "results.json").read_text())["run"]
    whole = run["sizes"][0]["seconds_per_step"]
    assert run["uncut_seconds"] == pytest.approx(24 * whole)
    assert f"{run['saved_seconds']:.2f} s" in result.out and "saved, estimated" in result.out


def test_a_run_without_cuts_and_with_a_stop_counts_all_its_steps(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = recorder.Recorder.stepped

    def interrupt(self: recorder.Recorder, now: int, loss: float) -> None:
        stepped(self, now, loss)
        if now == 14:
            raise KeyboardInterrupt

    arguments = [*tiny, "--no-compress", "--eval-every", "24"]
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "stepped", interrupt)
        assert command("train", "-q", "--run", tmp_path / "run", *arguments).code == 130
    result = command("train", "-q", "--resume", tmp_path / "run")
    assert result.code == 0
    run = json.loads((tmp_path / "run" / "results.json").read_text())["run"]
    (size,) = run["sizes"]
    assert (size["steps"], size["orders"]) == (24, {"blocks.0.ssm": 16})  # 10 of the first process count, 4 were lost
    assert size["seconds_per_step"] is not None and run["saved_seconds"] == 0
    assert "Time and memory" in result.out and "saved" not in result.out


def test_what_was_not_measured_is_a_dash() -> None:
    run = {
        "steps": 30, "cut_seconds": 1.0, "capture_seconds": 0.0, "guard_seconds": 0.25, "training_seconds": None,
        "uncut_seconds": None, "saved_seconds": None, "saved_fraction": None,
        "sizes": [
            {"orders": {"a": 8, "b": 8}, "steps": 3, "measured": 0, "seconds_per_step": None},
            {"orders": {"a": 4, "b": 2}, "steps": 27, "measured": 20, "seconds_per_step": 0.5},
        ],
        "peak_memory": 3 << 20, "peak_device_memory": 5 << 30,
    }  # fmt: skip
    text = markdown_table(time_table(run))
    for line in (
        "| order 16 | 3 | - | - |", "| order 6 | 27 | 500.00 ms | 13.50 s |", "| analysis and cuts |  |  | 1.00 s |",
        "| guard |  |  | 0.25 s |", "| together | 30 |  | - |", "| uncut, estimated | 30 | - | - |",
        "| saved, estimated |  | - | - |", "| peak memory |  |  | 3 MiB |", "| peak memory, device |  |  | 5,120 MiB |",
    ):  # fmt: skip
        assert line in text
    assert "captures" not in text.split("Median step")[0]
