"""What a data set changes in the defaults, and how the parts of a configuration are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressm.cli.config import RunConfig
from compressm.cli.parsing import Tree, build, merge
from compressm.data.registry import UCR, require_known
from compressm.data.sysid import RECORDS
from compressm.errors import ConfigError, DataError

RECIPES: dict[str, Tree] = {
    "digits": {},  # the defaults of RunConfig
    "smnist": {  # Chahine et al. 2026, table of hyper-parameters; 200,000 steps there
        "model": {"blocks": 1, "width": 8, "order": 256, "dropout": 0.1},
        "training": {
            "steps": 4000,
            "batch_size": 50,
            "lr": 1e-3,
            "schedule": "constant",
            "weight_decay": 0.0,
            "ssm_lr_factor": 1.0,
            "eval_every": 500,
        },
        "output": {"checkpoint_every": 500},
    },
    "fsdd": {
        "model": {"blocks": 2, "width": 16, "order": 64},
        "training": {"steps": 2000, "batch_size": 16, "eval_every": 200},
    },
}
"""Settings of a data set, laid over the defaults and under the user's own."""

_SYSTEM: Tree = {
    "model": {"blocks": 2, "width": 16, "order": 32, "dropout": 0.0, "norm": "layer"},
    "training": {"steps": 2000, "batch_size": 16, "lr": 3e-3, "weight_decay": 0.0, "eval_every": 200},
}
_ARCHIVE: Tree = {"training": {"batch_size": 16}}


def recipe_of(dataset: str) -> Tree:
    """The settings that a data set changes.

    Raises:
        ConfigError: the name is unknown.
    """
    try:
        require_known(dataset)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return RECIPES.get(dataset, _ARCHIVE if dataset.startswith(UCR) else _SYSTEM if dataset in RECORDS else {})


def resolve(dataset: str | None, file: Path | None, flags: Tree, assignments: Tree) -> RunConfig:
    """The configuration from, in rising priority: defaults, the data set's recipe, the YAML file, flags, `--set`.

    A data set that is named also wins over a path to the user's own arrays in the file.

    Raises:
        ConfigError: a key or value is wrong, the file cannot be read, or flags name other data beside `dataset`.
    """
    user = merge(flags, assignments)
    if dataset is not None:
        other = {
            name: value for name, value in _data(user).items() if name in ("dataset", "path") and value is not None
        }
        if other not in ({}, {"dataset": dataset}):
            raise ConfigError(f"The data are {dataset!r} and also {' and '.join(map(str, other.values()))}; give one.")
        user = merge(user, {"data": {"dataset": dataset, "path": None}})
    user = merge(read_yaml(file) if file is not None else {}, user)
    named = _data(user)
    name = named.get("dataset", RunConfig().data.dataset)
    recipe = {} if named.get("path") is not None else recipe_of(str(name))
    return build(RunConfig, merge(recipe, user))


def _data(tree: Tree) -> Tree:
    """The group of the data; empty where it is no group, which `build` will tell."""
    group = tree.get("data")
    return group if isinstance(group, dict) else {}


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds something else than a mapping.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        _require_single_keys(yaml.compose(text, yaml.SafeLoader), path)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{path} has a part that holds itself, or is nested too deeply; write each setting out."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; wanted groups of settings such as 'training:'.")
    return content


def _require_single_keys(node: Any, path: Path) -> None:
    """Raise ConfigError where a key stands twice in a mapping: PyYAML would take the last one without a word."""
    if getattr(node, "id", None) != "mapping":
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            raise ConfigError(
                f"{path} has {key.value!r} twice, on lines {lines[str(key.value)]} and {line}; keep one of them."
            )
        lines[str(key.value)] = line
        _require_single_keys(value, path)
