"""What decides a run's arithmetic beside its settings: threads, compiled kernels, and the table of costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compressm.cli.config import RunConfig
from compressm.cli.console import Terminal
from compressm.errors import ConfigError
from compressm.ops import CostTable, keep_freed_memory, kernels_run, use_cost_table, use_kernels


def settled(config: RunConfig) -> RunConfig:
    """The configuration with the number of threads and the use of kernels that this machine gives it."""
    training = config.training
    threads = training.threads or torch.get_num_threads()
    kernels = kernels_run() if training.kernels is None else training.kernels
    if kernels and not kernels_run():
        raise ConfigError(
            "training.kernels is true, but compiled kernels cannot run here: pip install 'compressm[fast]', "
            "or leave training.kernels unset."
        )
    return replace(config, training=replace(training, threads=threads, kernels=kernels))


def read_cost_table(path: str | Path | None) -> CostTable:
    """The table in a file that `compressm bench --write` made; the shipped one for None.

    Raises ConfigError for a file that cannot be read or holds anything else.
    """
    if path is None:
        return CostTable()
    try:
        return cost_table_of(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"training.cost_table: {path} cannot be read: {error.strerror}.") from error
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"training.cost_table: {path} is no table of `compressm bench --write`: {error}") from error


def cost_table_of(value: Any) -> CostTable:
    """The table with these scales, as JSON gives them."""
    if not isinstance(value, Mapping) or not isinstance(value.get("scale"), Mapping):
        raise ConfigError('wanted {"scale": {form: number}}.')
    return CostTable(dict(value["scale"]))


def arrange(config: RunConfig, table: CostTable, terminal: Terminal) -> None:
    """Make this process compute as the run does, so that a resumed run goes on bit for bit."""
    torch.set_num_threads(config.training.threads or torch.get_num_threads())
    keep_freed_memory()
    use_cost_table(table)
    wanted = config.training.kernels is not False
    use_kernels(wanted)
    if config.training.kernels and not kernels_run():
        terminal.warn(
            "the run was started with compiled kernels, which cannot run here (pip install 'compressm[fast]'): it "
            "goes on in plain torch, equal to rounding only, and with other random choices of dropout."
        )
