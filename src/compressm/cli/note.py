"""`run.json`: what a run was started with beside its settings, and needs to go on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressm.errors import CheckpointError, ConfigError
from compressm.ops import CostTable

_NAME = "run.json"


@dataclass(frozen=True)
class RunNote:
    """The fingerprint of the data, the table of costs, and for the reader the versions of PyTorch and Python."""

    data: str
    table: CostTable
    torch_version: str = str(torch.__version__)
    python_version: str = platform.python_version()

    @classmethod
    def read(cls, folder: Path) -> RunNote:
        """What `write` wrote into the run folder.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = folder / _NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not isinstance(found.get("data"), str):
                raise ConfigError('wanted {"data": the fingerprint of the data, ...}.')
            table = cost_table_of(found.get("cost_table", {"scale": {}}))
            return cls(found["data"], table, str(found.get("torch")), str(found.get("python")))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {str(error).rstrip('.')}. Without it the run cannot go on as it began. "
                f"Restore it; or use the checkpoints as they are (compressm eval {folder}); or start anew with "
                f"--config {folder / 'config.yaml'}."
            ) from error

    def write(self, folder: Path) -> None:
        """Write the file."""
        content = {
            "data": self.data,
            "torch": self.torch_version,
            "python": self.python_version,
            "cost_table": {"scale": dict(self.table.scale)},
        }
        (folder / _NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def cost_table_of(value: Any) -> CostTable:
    """The table with these scales, as JSON gives them.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("scale"), Mapping):
        raise ConfigError('wanted {"scale": {form: number}}.')
    return CostTable(dict(value["scale"]))
