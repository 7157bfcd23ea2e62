"""How the C library's allocator treats freed memory."""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_LARGEST = 2**31 - 1
_LARGE = 1 << 18  # bytes from which on a gap in memory is worth filling
_ALIGNMENT = 64


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the system; no effect elsewhere.

    A training step that allocates and frees what it needs pays for the page faults of getting it back in every step,
    up to a third of a narrow model's time. With mallopt(3) blocks of any size come from the heap (M_MMAP_MAX = 0),
    and its end is given back from 2 GiB of free memory on (M_TRIM_THRESHOLD). The process's memory then stays near
    its peak. Call it once, before training.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST)):
        _log.info("The C library's allocator cannot be told to keep freed memory; training may be slower.")


def reusable(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty tensor on the device and in the dtype of `like`, into whose memory, once freed, an equal one fits.

    PyTorch asks glibc for aligned memory, to find which glibc wants more room than the tensor then takes: what is left
    where a large tensor was is a little too small for the next one. NumPy asks for plain memory, aligned here.
    """
    size = math.prod(shape) * like.element_size()
    if size < _LARGE or like.device.type != "cpu" or like.dtype != torch.float32 or torch.compiler.is_compiling():
        return like.new_empty(shape)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return torch.from_numpy(room[start : start + size].view(np.float32)).view(*shape)
