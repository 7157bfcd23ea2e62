"""The page of guarantees names tests that exist and counts that are theirs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| **")]


def row(promise: str) -> list[str]:
    (found,) = [cells for cells in ROWS if promise in cells[0]]
    return found


def first_number(text: str) -> int:
    return int(re.findall(r"\d+", text)[0])


def examples(path: str) -> int:
    """The sum of what the settings of Hypothesis allow the tests of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    total = 0
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("fuzz", "settings"):
                given = [*decorator.args, *(k.value for k in decorator.keywords if k.arg == "max_examples")]
                total += product(given[0], names) if given else names["EXAMPLES"]
    return total


def product(node: ast.expr, names: dict[str, int]) -> int:
    """The value of a number, a name, or a product of such."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return product(node.left, names) * product(node.right, names)
    return names[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def test_every_row_has_a_promise_tests_tries_and_limits() -> None:
    assert len(ROWS) >= 12
    for cells in ROWS:
        assert len(cells) == 4 and all(cells), cells
        paths = re.findall(r"`((?:tests|experiments)/\S+\.py)`", cells[1])
        assert paths and all((ROOT / path).is_file() for path in paths), cells


def test_counts_of_generated_calls() -> None:
    assert first_number(row("Bad arguments")[2]) == examples("tests/guarantees/test_hostile.py") >= 500
    assert first_number(row("NaN and infinite")[2]) == examples("tests/guarantees/test_not_finite.py")


def test_counts_of_cuts_and_of_tampered_structures() -> None:
    source = (ROOT / "tests/guarantees/test_memory.py").read_text(encoding="utf-8")
    each = int(re.findall(r"^CUTS = (\d+)", source, flags=re.M)[0])
    assert first_number(row("leave nothing behind")[2]) == each * source.count("    def test_") == 500
    source = (ROOT / "tests/checkpoint/test_damage.py").read_text(encoding="utf-8")
    tampered = re.search(r"(\d+) tampered structures", row("damaged or foreign")[2])
    assert tampered is not None and int(tampered[1]) == len(re.findall(r"^ +\(lambda b: ", source, flags=re.M))


def test_the_trial_with_sigkill_is_on_record() -> None:
    record = json.loads((ROOT / "experiments/results/kill_resume.json").read_text(encoding="utf-8"))
    points = record["results"]["points"]
    assert first_number(row("A killed run")[2]) == len(points)
    assert all(point["weights_equal"] and point["metrics_equal"] for point in points)
    table = (ROOT / "experiments/results/kill_resume.md").read_text(encoding="utf-8")
    assert table.splitlines()[0] in PAGE and all(line in PAGE for line in table.splitlines() if line.startswith("| "))
    assert f"--points {len(points)} " in PAGE and f"--points {len(points)} " in record["command"]
