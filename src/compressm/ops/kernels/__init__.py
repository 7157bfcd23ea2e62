"""Kernels that numba compiles on first use: an optional extra, `pip install compressm[fast]`.

What is here decides whether they run and calls them; the modules beside it need numba and are imported on first use.
Every kernel has a counterpart in plain torch that runs without numba, on other devices and in other dtypes.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module

import torch

_log = logging.getLogger(__name__)
_VARIABLE = "COMPRESSM_KERNELS"
_wanted = os.environ.get(_VARIABLE, "1") != "0"


def use_kernels(wanted: bool) -> bool:
    """Allow or forbid compiled kernels in this process; returns whether they were allowed before.

    They are allowed from the start unless the environment variable COMPRESSM_KERNELS is 0. Results with and without
    them agree to rounding, except for the random choices of dropout.
    """
    global _wanted
    before, _wanted = _wanted, wanted
    return before


def kernels_run() -> bool:
    """Whether float32 tensors on the CPU are computed by compiled kernels: allowed, and numba is installed."""
    return _wanted and _available()


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels run on tensors of this kind."""
    plain = device.type == "cpu" and dtype == torch.float32
    return plain and not torch.compiler.is_compiling() and kernels_run()


@cache
def _available() -> bool:
    try:
        import_module("numba")
    except ImportError as error:
        _log.info("Plain torch is used, numba cannot be imported (pip install compressm[fast]): %s", error)
        return False
    return True
