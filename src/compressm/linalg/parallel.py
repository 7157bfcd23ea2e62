"""Work on many small matrices, spread over threads and over pieces that stay in cache.

PyTorch decomposes the matrices of a batch one after the other. Here a batch is cut into pieces, whose number does not
depend on the number of threads, and threads take one piece after the other; each computes alone, without threads of
its own. So results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock

import torch
from torch import Tensor

LARGEST_SHARED = 512  # rows up to which LAPACK gains little from threads of its own
_CACHE = 2**16  # numbers in a piece
_WORTHWHILE = 2**15  # numbers below which starting threads costs more than they save


def decompose(function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> tuple[Tensor, ...]:
    """`function` (an eigenvalue or singular value decomposition) of `(*h, k, l)`, several matrices at a time."""
    batch, (rows, columns) = matrices.shape[:-2], matrices.shape[-2:]
    if batch.numel() < 2 or max(rows, columns) > LARGEST_SHARED:
        return tuple(function(matrices))
    return in_pieces(function, rows * columns, batch, matrices)


def eigenvalues(matrices: Tensor) -> Tensor:
    """The eigenvalues of `(*h, k, k)`, complex `(*h, k)`."""
    return decompose(lambda m: (torch.linalg.eigvals(m),), matrices)[0]


def singular_values(matrices: Tensor) -> Tensor:
    """The singular values of `(*h, k, l)`, from the largest."""
    return decompose(lambda m: (torch.linalg.svdvals(m),), matrices)[0]


def in_pieces(
    function: Callable[..., Sequence[Tensor]], size: int, batch: torch.Size, *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """`function(*tensors)` for tensors that begin with `batch`, some systems at a time, `size` numbers each.

    The function is called with one batch dimension, or, where there is only one piece, with `batch`.
    """
    count = batch.numel()
    each = max(1, _CACHE // max(1, size))
    if count <= each and count * size < _WORTHWHILE:
        return tuple(function(*tensors))
    each = min(each, -(-count // 2))
    flat = [None if t is None else t.reshape(count, *t.shape[len(batch) :]) for t in tensors]
    results: list[Tensor] = []
    lock = Lock()

    def run(start: int) -> None:
        pieces = function(*(None if t is None else t[start : start + each] for t in flat))
        with lock:
            if not results:
                results.extend(p.new_empty(count, *p.shape[1:]) for p in pieces)
        for result, piece in zip(results, pieces, strict=True):
            result[start : start + each] = piece

    _each_alone(run, range(0, count, each))
    return tuple(t.unflatten(0, batch) for t in results)


def _each_alone(run: Callable[[int], None], starts: Sequence[int]) -> None:
    """Run all on as many threads as torch has; each thread has no threads of its own meanwhile."""
    threads = torch.get_num_threads()
    if threads < 2 or len(starts) < 2:
        for start in starts:
            run(start)
        return
    try:
        with ThreadPoolExecutor(min(threads, len(starts)), initializer=partial(torch.set_num_threads, 1)) as pool:
            for _ in pool.map(run, starts):
                pass
    finally:
        torch.set_num_threads(threads)  # the workers' number is the one with which new threads begin
