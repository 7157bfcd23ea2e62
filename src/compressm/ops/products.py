"""Matrix products of long float32 signals with weights, by whichever of torch's two libraries is faster at them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_LARGE = 1 << 24  # multiplications from which on a product takes longer than choosing how


def times(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T plus a bias (M,) for rows (P, K) and a weight (M, K).

    torch.mm calls BLAS, which for these shapes was slower than oneDNN's linear layer on the AMD EPYC where both were
    timed. It has no derivative of its own and is for the insides of autograd functions.
    """
    product = _one_dnn() if _suits(rows, weight) else None
    if product is not None:
        return product(rows, weight, bias, "none", [], "")
    return rows @ weight.mT if bias is None else torch.addmm(bias, rows, weight.mT)


def _suits(rows: Tensor, weight: Tensor) -> bool:
    plain = rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32
    large = rows.shape[0] * rows.shape[1] * weight.shape[0] >= _LARGE
    return plain and large and rows.is_contiguous() and not torch.compiler.is_compiling()


@cache
def _one_dnn() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer for dense tensors, None where torch is built without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
