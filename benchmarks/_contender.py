"""What a worker runs. Imports neither torch nor jax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


class Contender(ABC):
    """A computation that is run again and again."""

    @abstractmethod
    def run(self, count: int) -> None:
        """Do it `count` times; returns when all is done."""

    def results(self, arrays: Arrays) -> Arrays:
        """What is compared with the other contenders' before anything is timed; `arrays` as it was built from."""
        return {}


def weights(arrays: Arrays) -> Arrays:
    """The model's state_dict among the arrays that all contenders are given."""
    prefix = "weights/"
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
