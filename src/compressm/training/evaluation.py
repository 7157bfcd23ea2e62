"""Measuring a metric in the middle of training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from compressm.errors import ConfigError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each module's mode and all random states are as before.

    The random states are those of PyTorch (CPU and every CUDA device), NumPy's global generator and Python's `random`.
    """
    modes = [(module, module.training) for module in model.modules()]
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.set_rng_state(cpu)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


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
