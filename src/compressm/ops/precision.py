"""Where a computation needs more digits than the tensors it came from."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(u: Tensor) -> torch.dtype:
    """The real dtype a recurrence runs in for the input u: float64 for float64, else float32."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype.to_complex()` of float32, float64 or what is complex, in words that torch.compile can trace."""
    return torch.promote_types(dtype, torch.complex64)


def precise(x: Tensor) -> Tensor:
    """x in float64, or in float32 on devices that have no float64 (Apple's)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def nothing(*sources: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Zeros of this shape that depend on all sources, in the real dtype of the last: each has the gradient 0.

    What an empty batch or sequence gives. A parameter without any gradient would be skipped by its optimizer, and
    DistributedDataParallel would wait for it.
    """
    ties = [t.reshape(-1)[:0].sum().real for t in sources if t is not None]
    like = next(t for t in reversed(sources) if t is not None)
    zeros = torch.zeros(shape, dtype=like.real.dtype, device=like.device)
    return zeros + sum(ties[1:], ties[0]).to(zeros.dtype)
