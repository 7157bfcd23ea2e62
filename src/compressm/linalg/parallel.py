"""Decompositions of many small matrices, spread over threads and over chunks that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_SMALL = 512  # rows up to which LAPACK gains little from threads of its own
_CACHE = 2**17  # numbers in a chunk of elementwise work


def decompose(function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> tuple[Tensor, ...]:
    """`function` (an eigenvalue or singular value decomposition) of `(*h, k, l)`, several matrices at a time.

    PyTorch decomposes the matrices of a batch one after the other. Here the batch is split among threads.
    """
    batch = matrices.shape[:-2]
    parts = min(torch.get_num_threads(), batch.numel())
    if parts < 2 or matrices.shape[-1] > _SMALL:
        return tuple(function(matrices))
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    with ThreadPoolExecutor(parts) as pool:
        pieces = list(pool.map(function, flat.tensor_split(parts)))
    return tuple(torch.cat(piece).unflatten(0, batch) for piece in zip(*pieces, strict=True))


def eigenvalues(matrices: Tensor) -> Tensor:
    """The eigenvalues of `(*h, k, k)`, complex `(*h, k)`."""
    return decompose(lambda m: (torch.linalg.eigvals(m),), matrices)[0]


def singular_values(matrices: Tensor) -> Tensor:
    """The singular values of `(*h, k, l)`, from the largest."""
    return decompose(lambda m: (torch.linalg.svdvals(m),), matrices)[0]


def in_chunks(function: Callable[..., Tensor], size: int, batch: torch.Size, *tensors: Tensor | None) -> Tensor:
    """`function(*tensors)` for tensors that begin with `batch`, some systems at a time, `size` numbers each."""
    count = batch.numel()
    each = max(1, _CACHE // max(1, size))
    if count <= each:
        return function(*tensors)
    flat = [None if t is None else t.reshape(count, *t.shape[len(batch) :]) for t in tensors]
    pieces = [
        function(*(None if t is None else t[start : start + each] for t in flat)) for start in range(0, count, each)
    ]
    return torch.cat(pieces).unflatten(0, batch)
