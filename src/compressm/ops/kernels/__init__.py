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

from compressm.checks import require_kind

_log = logging.getLogger(__name__)
_VARIABLE = "COMPRESSM_KERNELS"
_forbidden = os.environ.get(_VARIABLE) == "0"
_wanted = True


def use_kernels(wanted: bool) -> bool:
    """Want compiled kernels in this process or not; returns whether they were wanted before, as they are at the start.

    The environment variable COMPRESSM_KERNELS=0 forbids them whatever is wanted. Results with and without them agree to
    rounding, except for the random choices of dropout.
    """
    global _wanted
    require_kind("wanted", wanted, bool)
    before, _wanted = _wanted, wanted
    return before


def kernels_run() -> bool:
    """Whether float32 tensors on the CPU are computed by compiled kernels: wanted, not forbidden, numba installed."""
    return _wanted and kernels_missing() is None


def kernels_missing() -> str | None:
    """Why compiled kernels cannot run in this process, with the remedy; None where they can."""
    if _forbidden:
        return f"the environment variable {_VARIABLE} is 0 (unset it)"
    return None if _available() else "numba cannot be imported (pip install 'compressm[fast]')"


vars(kernels_missing)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result; see compressm.ops.cost


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels run on tensors of this kind."""
    return usable_opaquely(device, dtype) and not torch.compiler.is_compiling()


def usable_opaquely(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels run on tensors of this kind in an operator that `torch.compile` does not look into."""
    return device.type == "cpu" and dtype == torch.float32 and kernels_run()


@cache
def _available() -> bool:
    try:
        import_module("numba")
    except ImportError as error:
        _log.info("Plain torch is used, numba cannot be imported (pip install compressm[fast]): %s", error)
        return False
    return True
