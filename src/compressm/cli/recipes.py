"""What a data set changes in the defaults, and how the parts of a configuration are put together."""

from __future__ import annotations

from pathlib import Path

from compressm.cli.config import RunConfig
from compressm.cli.parsing import Tree, build, merge, nearest
from compressm.errors import ConfigError

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
}
"""Settings of each data set, laid over the defaults and under the user's own."""


def resolve(dataset: str | None, file: Path | None, flags: Tree, assignments: Tree) -> RunConfig:
    """The configuration from, in rising priority: defaults, the data set's recipe, the YAML file, flags, `--set`.

    Raises:
        ConfigError: a key or value is wrong, or the file cannot be read.
    """
    user = merge(read_yaml(file) if file is not None else {}, flags, assignments)
    if dataset is not None:
        user = merge(user, {"data": {"dataset": dataset}})
    group = user.get("data")
    named = group if isinstance(group, dict) else {}
    name = named.get("dataset", RunConfig().data.dataset)
    if name not in RECIPES:
        hint = nearest(str(name), RECIPES)
        raise ConfigError(f"Unknown data set {name!r}; known are {', '.join(RECIPES)}, or --data my.npz.{hint}")
    recipe = {} if named.get("path") is not None else RECIPES[name]
    return build(RunConfig, merge(recipe, user))


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds something else than a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; wanted groups of settings such as 'training:'.")
    return content
