"""`compressm bench`, its table of costs, and runs that use one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressm.ops import CostTable, Form, choose_form, cost_table, kernels_run, use_cost_table, use_kernels

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
