"""What a command writes, whatever its names hold and wherever it writes to."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from compressm.cli import app, session
from compressm.cli.console import Terminal
from compressm.cli.objective import Objective
from compressm.cli.report.rows import cuts_table
from compressm.cli.report.show import print_table
from compressm.cli.report.summary import summarise
from compressm.cli.results import Results
from compressm.cli.stopping import held_back
from compressm.compress import compress_
from compressm.data.dataset import Task
from compressm.layers import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.settings import CompressionSettings


@pytest.mark.parametrize("name", ["a [bold]b :smile: ü", "a[/b]", "long" * 50])
def test_names_of_folders_are_shown_and_quoted_as_they_are(
    command: Command, tiny: list[str], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    result = command("train", "digits", "--run", name, *tiny)
    assert result.code == 0
    assert f"Run folder {name}\n" in result.err
    assert f"Report and pictures: {name}/report.md\n" in result.err
    report = (tmp_path / name / "report.md").read_text(encoding="utf-8")
    assert f"\ncompressm eval {shlex.quote(name)}\n" in report
    assert "tensorboard" not in report  # none was written


def test_a_table_explains_the_columns_that_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compress_(LRU(3, 8), CompressionSettings(FixedOrder(4)))
    cut = {"kind": "cut", "step": 30, "report": report.to_dict(), "parameters": 5}
    start = {"kind": "start", "orders": {"": 8}, "parameters": 9}
    summary = summarise([start, cut], "accuracy", Results({"accuracy": 0.5}, {}, None, 1.0))
    table = cuts_table(summary, Objective(Task.CLASSIFY))
    shown = {}
    for width in (60, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(Terminal().out, table)
        shown[width] = " ".join(capsys.readouterr().out.split())
    assert "discarded" in shown[160] and "Discarded: fraction" in shown[160]
    assert "discarded" not in shown[60] and "Discarded: fraction" not in shown[60]
    assert "Output change: relative" in shown[60]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_errors_are_without_colours_where_none_are_wanted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(app.typer, "secho", lambda text, *, err, fg: seen.append(fg))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert app.run(["eval", "nowhere"]) == 2
    monkeypatch.setenv(variable, value)
    assert app.run(["eval", "nowhere"]) == 2
    assert seen == [app.typer.colors.RED, None]


def test_an_old_code_page_gets_what_it_can_show(finished: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "compressm",
        "compress",
        str(finished),
        "--order",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=250)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b" ? 2" in done.stdout  # the arrow between the orders


def test_ctrl_c_that_an_import_would_swallow_comes_at_its_end() -> None:
    reached: list[int] = []

    def block(interrupts: int) -> None:
        with held_back():
            for number in range(interrupts):
                signal.raise_signal(signal.SIGINT)
                reached.append(number)

    with pytest.raises(KeyboardInterrupt):
        block(1)
    assert reached == [0]
    with pytest.raises(KeyboardInterrupt):
        block(3)  # the second one interrupts at once
    assert reached == [0, 0]


def test_ctrl_c_while_torch_is_imported_ends_the_command(tmp_path: Path) -> None:
    code = (
        "import signal, sys, builtins\n"
        "real = builtins.__import__\n"
        "def importing(name, *rest):\n"
        "    if name == 'torch' and name not in sys.modules:\n"
        "        try:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"  # as its compiled modules do at times
        "    return real(name, *rest)\n"
        "builtins.__import__ = importing\n"
        "from compressm.cli.app import main\n"
        "sys.argv = ['compressm', 'bench', '--seconds', '0']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_an_interrupted_measurement_says_how_to_go_on(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "close", interrupted)
    result = command("train", "digits", "--quiet", "--run", tmp_path / "a run", *tiny)
    assert result.code == 130
    assert result.err == f"Go on with: compressm train --resume '{tmp_path / 'a run'}'\nInterrupted.\n"
    monkeypatch.undo()
    assert command("train", "--quiet", "--resume", tmp_path / "a run").code == 0


def test_settings_that_were_edited_under_a_run_are_told(command: Command, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    text = (copy / "config.yaml").read_text()
    assert command("train", "--quiet", "--resume", copy).err == ""
    (copy / "config.yaml").write_text(text.replace("steps: 24\n", "steps: 26\n"))
    result = command("train", "--quiet", "--resume", copy)
    assert result.code == 0
    assert "was changed since the checkpoint was written: training.steps from 24 to 26." in result.err


def test_a_file_with_a_part_that_holds_itself_is_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text("training: &t\n  again: *t\n", encoding="utf-8")
    result = command("train", "digits", "--config", file)
    assert result.code == 2
    assert "holds itself" in result.err


def test_a_setting_that_stands_twice_in_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("model:\n  order: 8\n  width: 4\n  order: 9\n")
    result = command("train", "digits", "--config", file)
    assert result.code == 2
    assert f"{file} has 'order' twice, on lines 2 and 4; keep one of them." in result.err
