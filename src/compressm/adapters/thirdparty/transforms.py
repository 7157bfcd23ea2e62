"""Positive numbers as layers of the S4 repository store them: under one of five functions, named by a string."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from compressm.errors import AdapterError

LEAST = 1e-4
"""What "relu" adds."""


class Transform(Enum):
    """From what is stored to the positive number."""

    NONE = "none"  # x
    EXP = "exp"  # e^x
    RELU = "relu"  # max(x, 0) + least
    SIGMOID = "sigmoid"  # 1 / (1 + e^-x)
    SOFTPLUS = "softplus"  # log(1 + e^x)

    @classmethod
    def named(cls, name: object, option: str, layer: str) -> Transform:
        """The transform of that name; AdapterError where there is none."""
        found = next((t for t in cls if t.value == name), None)
        if found is None:
            raise AdapterError(f"{layer} has {option}={name!r}; known are {', '.join(t.value for t in cls)}.")
        return found

    def apply(self, stored: Tensor, least: float = LEAST) -> Tensor:
        """The numbers that are stored as `stored`."""
        match self:
            case Transform.NONE:
                return stored.clone()
            case Transform.EXP:
                return torch.exp(stored)
            case Transform.RELU:
                return torch.relu(stored) + least
            case Transform.SIGMOID:
                return torch.sigmoid(stored)
            case Transform.SOFTPLUS:
                return torch.nn.functional.softplus(stored)

    def invert(self, values: Tensor, option: str, layer: str, least: float = LEAST) -> Tensor:
        """What stores positive `values`; AdapterError where one of them is out of the function's range."""
        low = least if self is Transform.RELU else 0.0
        high = 1.0 if self is Transform.SIGMOID else float("inf")
        if bool(((values <= low) | (values >= high)).any()):
            raise AdapterError(
                f"{layer}: with {option}={self.value!r} decay rates lie between {low:g} and {high:g}; the reduced "
                f"system has rates from {float(values.min()):.3g} to {float(values.max()):.3g}. Nothing was cut. Build "
                f"the layer with {option}='exp', cut less, or leave it alone with adapters={{{layer}: None}}."
            )
        match self:
            case Transform.NONE:
                return values.clone()
            case Transform.EXP:
                return torch.log(values)
            case Transform.RELU:
                return values - least
            case Transform.SIGMOID:
                return torch.logit(values)
            case Transform.SOFTPLUS:
                return values + torch.log(-torch.expm1(-values))
