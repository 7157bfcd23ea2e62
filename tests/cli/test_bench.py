"""`compressm bench`, its table of costs, and runs that use one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressm.cli.console import Terminal
from compressm.cli.report.bench import TYPICAL, bench_tables
from compressm.cli.report.show import print_table
from compressm.ops import (
    CostTable,
    Form,
    Machine,
    Shape,
    choose_form,
    cost_table,
    kernels_run,
    use_cost_table,
    use_kernels,
)
from compressm.ops.measure import FormTime

Command = Callable[..., Any]
SIZES = ("--batch", 3, "--length", 20, "--width", 2, "--order", 3, "--seconds", 0)


@pytest.fixture(autouse=True)
def same_arithmetic() -> Iterator[None]:
    before, allowed = cost_table(), use_kernels(True)
    use_kernels(allowed)
    yield
    use_cost_table(before)
    use_kernels(allowed)


def test_it_times_all_forms_and_marks_the_chosen(command: Command) -> None:
    result = command("bench", *SIZES)
    assert result.code == 0
    for form in ("convolution", "chunked", *(["lanes"] if kernels_run() else [])):
        assert form in result.out
    assert result.out.count("chosen") == 1


def test_rows_of_usual_sizes_fit_into_80_characters(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shapes = [Shape(50, 4096, 64, 64, 256, True), Shape(1, 20, 2, 2, 3, True)]
    times = [FormTime(Form.CONVOLUTION, 1.23456, 0.123456), FormTime(Form.CHUNKED, 0.123456, 1.23456)]
    (table,) = bench_tables([(shape, times) for shape in shapes])
    print_table(Terminal().out, table)
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert ["50", "4096", "64", "256", "convolution", "123", "1.23e+03", "1.00"] in [line[:8] for line in words]
    assert [line[:4] for line in words].count(["chunked", "1.23e+03", "123", "10.00"]) == 2  # sizes stand once
    assert ["batch", "L", "H", "N", "form"] in [line[:5] for line in words]


def test_sizes_come_all_or_none(command: Command) -> None:
    result = command("bench", "--batch", 3)
    assert result.code == 2
    assert "none of them" in result.err


def test_a_table_that_dislikes_a_form(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    scale = {form.value: 1e9 for form in Form if form is not Form.CHUNKED}
    path.write_text(json.dumps({"scale": scale}), encoding="utf-8")
    assert "chosen" in command("bench", *SIZES, "--cost-table", path).out
    assert choose_form(50, 784, 8, 8, 256, True) is Form.CHUNKED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "no table"),
        ("[]", "no table"),
        ('{"scale": {"chunked": -1}}', "positive"),
        ('{"scale": {"quick": 1}}', "quick"),
    ],
)
def test_a_table_that_is_none(command: Command, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text, encoding="utf-8")
    result = command("bench", *SIZES, "--cost-table", path)
    assert result.code == 2
    assert message in result.err
    assert command("bench", *SIZES, "--cost-table", tmp_path / "absent.json").code == 2


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """The shapes that were measured; each form is said to take three times what the shipped table estimates."""
    shapes: list[Shape] = []

    def measure(shape: Shape, *, seconds: float) -> list[FormTime]:
        shapes.append(shape)
        shipped = CostTable().seconds(Form.CHUNKED, shape, Machine.here())
        return [FormTime(Form.CHUNKED, shipped, 3 * shipped)]

    monkeypatch.setattr("compressm.ops.measure.measure_forms", measure)
    return shapes


def test_a_table_is_fitted_to_the_times_that_were_shown(command: Command, tmp_path: Path, measured: list) -> None:
    assert command("bench", "--write", tmp_path / "new" / "costs.json").code == 0
    assert len(measured) == len(TYPICAL)
    assert json.loads((tmp_path / "new" / "costs.json").read_text()) == {"scale": {"chunked": pytest.approx(3)}}


def test_a_table_is_fitted_to_all_sizes_where_one_was_shown(command: Command, tmp_path: Path, measured: list) -> None:
    assert command("bench", *SIZES, "--write", tmp_path / "costs.json").code == 0
    assert len(measured) == len(TYPICAL) + 1


@pytest.mark.parametrize("place", ["", "file/costs.json"])
def test_a_place_that_cannot_be_written_shows_before_anything_is_measured(
    command: Command, tmp_path: Path, measured: list, place: str
) -> None:
    (tmp_path / "file").write_text("text")
    result = command("bench", "--write", tmp_path / place)
    assert result.code == 2
    assert re.search("is a folder; give a file in it|is no folder that may be written", " ".join(result.err.split()))
    assert not measured


def test_a_run_stores_its_table_and_resumes_by_it(command: Command, tiny: list[str], tmp_path: Path) -> None:
    path, folder = tmp_path / "costs.json", tmp_path / "run"
    path.write_text(json.dumps({"scale": {"convolution": 7.0}}), encoding="utf-8")
    arguments = ("--set", f"training.cost_table={path}", "--set", "training.kernels=false", "--run", folder)
    assert command("train", "digits", "--quiet", *tiny, *arguments).code == 0
    path.unlink()
    assert json.loads((folder / "run.json").read_text())["cost_table"] == {"scale": {"convolution": 7.0}}
    use_cost_table(CostTable())
    use_kernels(True)
    assert command("train", "--resume", folder, "--quiet").code == 0
    assert dict(cost_table().scale) == {"convolution": 7.0}
    assert not kernels_run()


def test_a_table_is_found_again_from_another_folder(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "costs.json").write_text('{"scale": {"chunked": 2.0}}')
    monkeypatch.chdir(here)
    assert command("train", "-q", *tiny, "--set", "training.cost_table=costs.json", "--run", "run").code == 0
    monkeypatch.chdir(there)
    settings = here / "run" / "config.yaml"
    assert command("train", "-q", "--config", settings, "--run", "again").code == 0
    (here / "costs.json").unlink()
    result = command("train", "-q", "--config", settings, "--run", "third")
    assert result.code == 2
    assert "costs.json cannot be read" in result.err and "--set training.cost_table=null" in result.err
    assert command("train", "-q", "--config", settings, "--run", "third", "--set", "training.cost_table=null").code == 0
    assert dict(cost_table().scale) == {}


def test_kernels_that_are_forbidden_stay_so_when_a_run_goes_on(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels_run():
        pytest.skip("numba is not installed")
    folder = tmp_path / "run"
    assert command("train", "-q", *tiny, "--run", folder).code == 0
    monkeypatch.setattr("compressm.ops.kernels._forbidden", True)  # as COMPRESSM_KERNELS=0 does
    result = command("train", "-q", "--resume", folder)
    assert result.code == 0
    assert "compiled kernels, which cannot run here: the environment variable COMPRESSM_KERNELS" in result.err
    assert not kernels_run()
    settings = ("train", "-q", "--config", folder / "config.yaml", "--run", tmp_path / "other")
    result = command(*settings)
    assert result.code == 2
    assert "COMPRESSM_KERNELS is 0 (unset it)" in result.err and "--set training.kernels=null" in result.err
    assert command(*settings, "--set", "training.kernels=null").code == 0
