"""How raw values become inputs, recorded with the data set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Scaling(Enum):
    """What is done to each channel, from the training split alone."""

    STANDARD = "standard"  # mean 0, standard deviation 1
    UNIT = "unit"  # from the smallest to the largest value onto [0, 1]
    NONE = "none"  # nothing


@dataclass(frozen=True)
class Normalisation:
    """The affine map x -> (x - shift) / scale of each channel."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, values: NDArray[np.generic], scaling: Scaling) -> Normalisation:
        """The map for `values` `(*, channels)`; a constant channel is only shifted."""
        flat = values.reshape(-1, values.shape[-1])
        channels = flat.shape[1]
        shift, scale = np.zeros(channels), np.ones(channels)
        if scaling is Scaling.STANDARD:
            shift = flat.mean(axis=0, dtype=np.float64)
            scale = flat.std(axis=0, dtype=np.float64)
        elif scaling is Scaling.UNIT:
            shift = flat.min(axis=0).astype(np.float64)
            scale = flat.max(axis=0).astype(np.float64) - shift
        scale = np.where(scale > 0, scale, 1.0)
        return cls(tuple(map(float, shift)), tuple(map(float, scale)))

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """The normalised values `(*, channels)`, in single precision."""
        return (values.astype(np.float32) - np.array(self.shift, np.float32)) / np.array(self.scale, np.float32)
