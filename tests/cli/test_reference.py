"""The page of commands, options and settings is the program's, and its helps name what can be chosen."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from compressm.cli.app import app
from compressm.cli.config import PresetName, RateSchedule
from compressm.data import DATASETS
from compressm.layers import LayerKind
from compressm.layers.families import FAMILIES
from compressm.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]


def _help(command: str, option: str) -> list[str]:
    """The words of an option's help."""
    group: Any = typer.main.get_command(app)
    (found,) = (one for one in group.commands[command].params if one.name == option)
    return re.findall(r"[\w-]+", found.help)


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("command_line_page", ROOT / "tools" / "command_line_page.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    written = tool.PAGE.read_text(encoding="utf-8")
    assert written == tool.page(), "run tools/command_line_page.py"


def _choices(option: str) -> set[str]:
    kinds = (family.options.get(option) for family in FAMILIES.values())
    return {member.value for kind in kinds if kind is not None for member in kind}


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("layer", {kind.value for kind in LayerKind}),
        ("init", _choices("init")),
        ("discretization", _choices("discretization")),
        ("schedule", {kind.value for kind in RateSchedule}),
        ("preset", set(PRESETS)),
        ("dataset", set(DATASETS)),
    ],
)
def test_helps_name_every_choice(option: str, choices: set[str]) -> None:
    assert choices <= set(_help("train", option))


@pytest.mark.parametrize("command", ["analyze", "compress"])
def test_every_preset_is_named_wherever_one_can_be_chosen(command: str) -> None:
    assert set(PRESETS) == {kind.value for kind in PresetName} <= set(_help(command, "preset"))
