"""Write docs/api/command-line.md from the command line itself: every command, option and setting."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from compressm.cli.app import app
from compressm.cli.config import RunConfig
from compressm.cli.flags import SETTINGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api" / "command-line.md"

WITHOUT_FLAG = {
    "data.dataset": "The data set's name, which `compressm train NAME` gives.",
    "data.scaling": "What is done to each input channel, from the training split alone.",
    "data.split_seed": "Of splits that are not official.",
    "model.norm": "The normalisation in each block.",
    "model.r_min": "Least modulus of the initial poles; `lru`, `dense`, `d-linoss`, `rotations`.",
    "model.r_max": "Largest modulus of the initial poles; the same kinds.",
    "model.dt_min": "Least initial step size; `s4`, `s4d`, `s5`, `dss`, `lssl`.",
    "model.dt_max": "Largest initial step size; the same kinds.",
    "model.length": "Steps that a softmax kernel (`dss`) is normalised over; else the longest training sequence.",
    "training.optimizer": "The optimizer.",
    "training.final_lr": "Learning rate at the last step of the cosine schedule.",
    "training.kernels": "Whether compiled kernels are used; wherever they can run, if not given.",
    "training.cost_table": "A file of `compressm bench --write`.",
    "training.growing_batch": "The most sequences in a batch, which grows as cuts leave memory for it.",
    "training.growing_rate": "What becomes of the learning rate when the batch grows.",
    "training.log_every": "Steps between records of the training loss.",
    "compression.bound": "Cut as far as this bound on the H-infinity error allows.",
    "compression.reference": "What `--discard` is a fraction of: the layer before this cut, or before the first one.",
    "compression.multiple": "Orders are rounded up to a multiple of this.",
    "compression.floor": "The least order.",
    "compression.minimum_gain": "Cuts that remove a smaller fraction of the states are not made.",
    "compression.optimizer_policy": "What becomes of the optimizer's averages.",
    "compression.calibration_steps": "Training steps before a cut whose data weight it.",
    "compression.unstable": "What is done about a layer with an unstable pole.",
    "output.keep": "Newest checkpoints that stay.",
    "output.tensorboard": "Whether TensorBoard events are written.",
    "output.pictures": "Whether pictures are drawn.",
}
"""What the settings mean that only `--set` and a YAML file reach."""

_INTRO = """# Commands, options, settings

This page is written by `tools/command_line_page.py` from the program itself. How they are used together is told in
[The command line](../howto/command-line.md).
"""

_SETTINGS = """
## Settings

In a YAML file, in `config.yaml` of a run, and as `--set GROUP.NAME=VALUE`. A data set may bring defaults of its own
(`compressm.cli.recipes`); what stands under "default" holds for `digits`. Where there is none, the preset, the kind of
layer or the machine decides; `null` takes a setting back to that.
"""


def page() -> str:
    """The text of the page."""
    group: Any = typer.main.get_command(app)
    lines = [_INTRO.rstrip()]
    for name, command in group.commands.items():
        lines += [f"\n## compressm {name}\n", " ".join(command.help.split()), ""]
        lines += _table(("", "default", ""), _options(name, command.params))
    rows = list(_settings(RunConfig()))
    if wrong := set(WITHOUT_FLAG) ^ {name for name, _, _, option, _ in rows if not option}:
        raise KeyError(f"WITHOUT_FLAG tells of settings that are none, or have a flag, or it leaves some out: {wrong}.")
    lines += [_SETTINGS.rstrip(), ""]
    lines += _table(("setting", "wanted", "default", "option", ""), [(f"`{row[0]}`", *row[1:]) for row in rows])
    return "\n".join(lines) + "\n"


def _options(command: str, parameters: Sequence[Any]) -> Iterator[tuple[str, ...]]:
    defaults = {name: value for name, _, value, *_ in _settings(RunConfig())}
    for one in parameters:
        if one.name == "help":
            continue
        options = (*one.opts, *one.secondary_opts)
        named = options[0].startswith("-")
        shown = ", ".join(f"`{name}`" for name in options) if named else f"`{one.name.upper()}`"
        if command == "train" and one.name in SETTINGS:
            default = defaults[SETTINGS[one.name]]
        else:
            default = "" if one.required or callable(one.default) else _value(one.default)
        yield shown, default, one.help or ""


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """Name, what is wanted, default, option and meaning of every setting."""
    flags = {setting: name for name, setting in SETTINGS.items()}
    helps = {one.name: one for one in typer.main.get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    hints = get_type_hints(type(config))
    for one in fields(config):
        value, path = getattr(config, one.name), f"{prefix}{one.name}"
        if is_dataclass(value):
            yield from _settings(value, f"{path}.")
        elif path in flags:
            parameter = helps[flags[path]]
            yield path, _wanted(hints[one.name]), _value(value), f"`{parameter.opts[0]}`", parameter.help
        else:
            yield path, _wanted(hints[one.name]), _value(value), "", WITHOUT_FLAG.get(path, "")


def _wanted(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        kind = next(option for option in get_args(kind) if option is not types.NoneType)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", tuple[int, int]: "two integers"}
    return names.get(kind, "integers")


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else f'{value:g}' if isinstance(value, float) else value}`"


def _table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
