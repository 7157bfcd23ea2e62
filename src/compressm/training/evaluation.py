"""Measuring a metric in the middle of training without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from compressm.errors import ConfigError
from compressm.surgery.random_state import RandomState


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each module's mode and all random states are as before.

    The random states are those of PyTorch (all devices), NumPy's global generator and Python's `random`.
    """
    modes = [(module, module.training) for module in model.modules()]
    random_state = RandomState.capture()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random_state.restore()


def measure(metric: Callable[[], float], model: nn.Module) -> float:
    """The metric's value, `undisturbed`. Raises ConfigError where it is not a number."""
    with undisturbed(model):
        value = metric()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The guard's metric returned {type(value).__name__}; wanted a number or a tensor of one element."
        ) from error
