"""What decides a run's arithmetic beside its settings: threads, compiled kernels, and the table of costs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from compressm.cli.config import RunConfig
from compressm.cli.console import Terminal
from compressm.cli.note import cost_table_of
from compressm.errors import ConfigError
from compressm.ops import CostTable, keep_freed_memory, kernels_missing, kernels_run, use_cost_table, use_kernels


def settled(config: RunConfig) -> RunConfig:
    """The configuration with the number of threads and the use of kernels that this machine gives it, and the absolute
    path of its table of costs.

    Raises ConfigError where it asks for kernels that cannot run here.
    """
    training = config.training
    threads = training.threads or torch.get_num_threads()
    kernels = kernels_run() if training.kernels is None else training.kernels
    missing = kernels_missing()
    if kernels and missing is not None:
        raise ConfigError(
            f"training.kernels is true, but compiled kernels cannot run here: {missing}. Give --set "
            "training.kernels=null to use them only where they can run."
        )
    table = None if training.cost_table is None else os.path.abspath(training.cost_table)
    return replace(config, training=replace(training, threads=threads, kernels=kernels, cost_table=table))


def read_cost_table(path: str | Path | None, remedy: str) -> CostTable:
    """The table in a file that `compressm bench --write` made; the shipped one for None.

    Raises ConfigError, with the remedy, for a file that cannot be read or holds anything else.
    """
    if path is None:
        return CostTable()
    try:
        return cost_table_of(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"The table of costs {path} cannot be read: {error.strerror or error}. {remedy}") from error
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            f"The table of costs {path} is no table of `compressm bench --write`: {str(error).rstrip('.')}. {remedy}"
        ) from error


def arrange(config: RunConfig, table: CostTable, terminal: Terminal) -> None:
    """Make this process compute as the run does, so that a resumed run goes on bit for bit."""
    torch.set_num_threads(config.training.threads or torch.get_num_threads())
    keep_freed_memory()
    use_cost_table(table)
    use_kernels(config.training.kernels is not False)
    missing = kernels_missing()
    if config.training.kernels and missing is not None:
        terminal.warn(
            f"the run was started with compiled kernels, which cannot run here: {missing}. It goes on in plain torch, "
            "equal to rounding only, and with other random choices of dropout."
        )
