"""The state of the global random number generators of PyTorch, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """A copy of the global generators' states: the CPU's, each CUDA device's, MPS's, NumPy's and Python's."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    mps: Tensor | None
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls) -> RandomState:
        """The states as they are now; no generator advances."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        name, key, *rest = np.random.get_state(legacy=True)
        return cls(torch.get_rng_state(), cuda, mps, (name, np.array(key), *rest), random.getstate())

    def check(self) -> None:
        """Raise TypeError, ValueError or RuntimeError where `restore` would; nothing is restored."""
        torch.Generator().set_state(self.cpu)
        np.random.RandomState().set_state(self.numpy)
        random.Random().setstate(self.python)

    def restore(self) -> None:
        """Put all generators back. States of devices that this machine lacks are left out."""
        torch.set_rng_state(self.cpu)
        if torch.cuda.is_available():
            for index, state in enumerate(self.cuda[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, index)
        if self.mps is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(self.mps)
        np.random.set_state(self.numpy)  # pyright: ignore[reportArgumentType]
        random.setstate(self.python)

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists of numbers, texts and tensors."""
        name, key, position, has_gauss, gauss = self.numpy
        version, words, spare = self.python
        return {
            "cpu": self.cpu,
            "cuda": list(self.cuda),
            "mps": self.mps,
            "numpy": [name, torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
            "python": [version, torch.tensor(words, dtype=torch.int64), spare],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RandomState:
        """The inverse of `state_dict`."""
        name, key, *rest = state["numpy"]
        version, words, spare = state["python"]
        numpy = (name, key.numpy().astype(np.uint32), *rest)
        return cls(state["cpu"], tuple(state["cuda"]), state["mps"], numpy, (version, tuple(words.tolist()), spare))
