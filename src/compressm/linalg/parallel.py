"""Work on many small matrices, spread over threads and over pieces that stay in cache; tasks side by side.

PyTorch decomposes the matrices of a batch one after the other. Here a batch is cut into pieces, whose number does not
depend on the number of threads, and threads take one piece after the other; each computes alone, without threads of
its own. So results do not depend on the number of threads.

LAPACK gains little from threads within one eigenvalue problem of a few hundred rows: two of them side by side take as
long as one. Tasks that do not need each other's results therefore share the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

LARGEST_SHARED = 512  # rows up to which LAPACK gains little from threads of its own
_CACHE = 2**16  # numbers in a piece
_WORTHWHILE = 2**15  # numbers below which starting threads costs more than they save
Item = TypeVar("Item")
Result = TypeVar("Result")


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


def side_by_side(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of independent tasks, in their order, on the threads that torch has, the caller's own among them.

    Each of the tasks that run at once has its share of the threads. They run in the caller's grad and inference
    mode and without autocast. After an error no further task begins; it is raised when those that run have ended.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks))
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(task: Callable[[], Result]) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=False):
            return task()

    if workers < 2:
        return [run(task) for task in tasks]
    return _on_workers(run, tasks, workers, threads // workers)


def _each_alone(run: Callable[[int], None], starts: Sequence[int]) -> None:
    """Run all on as many threads as torch has; each thread has no threads of its own meanwhile."""
    workers = min(torch.get_num_threads(), len(starts))
    if workers < 2:
        for start in starts:
            run(start)
        return
    _on_workers(run, starts, workers, 1)


def _on_workers(run: Callable[[Item], Result], items: Sequence[Item], workers: int, each: int) -> list[Result]:
    """Run all on `workers` threads, of which the caller's is one, each with `each` threads of torch's own.

    The caller's thread works too because memory that it used before is at hand; a new one asks the system for its own.
    """
    threads = torch.get_num_threads()
    results: dict[int, Result] = {}
    failed: list[int] = []
    left, lock = iter(range(len(items))), Lock()

    def work() -> None:
        torch.set_num_threads(each)
        while not failed:
            with lock:
                k = next(left, None)
            if k is None:
                return
            try:
                results[k] = run(items[k])
            finally:
                failed.extend([] if k in results else [k])

    try:
        with ThreadPoolExecutor(workers - 1) as pool:
            others = [pool.submit(work) for _ in range(workers - 1)]
            work()
    finally:
        torch.set_num_threads(threads)
    for other in others:
        other.result()
    return [results[k] for k in range(len(items))]
