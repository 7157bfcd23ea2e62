"""`results.json`: what was measured once a run was complete."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressm.errors import CheckpointError

_NAME = "results.json"


@dataclass(frozen=True)
class Results:
    """Scores on the test split; each layer's Hankel singular values at the end; median seconds of a training step of
    the uncompressed model (None where nothing was cut) and of the final one, measured in turns; what the run itself
    took (`TrainingSummary.to_dict`; None in a file that was written before there was one).
    """

    test: dict[str, float]
    spectra: dict[str, list[float]]
    full_step: float | None
    end_step: float
    run: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What `write` wrote into the run folder.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = folder / _NAME
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Measure again with --resume {folder}.") from error

    def write(self, folder: Path) -> None:
        """Write the file into the run folder, whole or not at all."""
        temporary = folder / f".{_NAME}"
        temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        os.replace(temporary, folder / _NAME)
