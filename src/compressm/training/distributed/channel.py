"""Nested values between the processes of a run: JSON and raw tensors over torch.distributed, nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from compressm import errors
from compressm.checkpoint.tree import decode, encode
from compressm.errors import CompressmError, DistributedError


class Channel:
    """A gloo group of its own beside the one that averages gradients.

    So neither disturbs the other, nested values travel through the CPU whatever the gradients' backend is, and a long
    analysis on rank 0 runs into no watchdog. Every method is called by all processes, in the same order. A process
    that died shows as DistributedError on the others.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        # A group of some ranks is named after them: one that was given back leaves its addresses to the next.
        self._named_by_ranks = len(ranks) < dist.get_world_size()
        group = dist.new_group(list(ranks), backend="gloo", use_local_synchronization=self._named_by_ranks)
        if not isinstance(group, dist.ProcessGroup):
            raise DistributedError(f"Process {dist.get_rank()} is not among the ranks {list(ranks)} of this run.")
        self._group = group
        self.rank, self.size = dist.get_rank(group), len(ranks)
        self._first = dist.get_global_rank(self._group, 0)

    def broadcast(self, value: Any = None) -> Any:
        """The nested value that rank 0 gives; those of the others are ignored."""
        packed = pack(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([packed.numel()])
        try:
            dist.broadcast(size, self._first, self._group)
            if self.rank != 0:
                packed = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(packed, self._first, self._group)
        except RuntimeError as error:
            raise _lost(error) from error
        return value if self.rank == 0 else unpack(packed)

    def from_first(self, call: Callable[[], Any]) -> Any:
        """What `call` returns on rank 0; nobody else calls it.

        What it raises is raised on every process: the same kind of CompressmError, DistributedError for another one.
        """
        if self.rank != 0:
            message = self.broadcast()
            if "error" in message:
                raise _error(message)
            return message["value"]
        try:
            message = {"value": call()}
        except BaseException as error:
            self.broadcast({"error": _kind(error), "text": str(error) or type(error).__name__})
            raise
        self.broadcast(message)
        return message["value"]

    def gather(self, value: Any) -> list[Any]:
        """The nested values of all processes, by rank, on every process."""
        packed = pack(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        try:
            dist.all_gather(sizes, torch.tensor([packed.numel()]), self._group)
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: packed.numel()] = packed
            found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, padded, self._group)
        except RuntimeError as error:
            raise _lost(error) from error
        return [unpack(each[: int(size)]) for each, size in zip(found, sizes, strict=True)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of real numbers in double precision, of one shape everywhere."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        try:
            dist.all_reduce(total, dist.ReduceOp.SUM, self._group)
        except RuntimeError as error:
            raise _lost(error) from error
        return total

    def close(self) -> None:
        """Give the group back, where torch.distributed has not been shut down already."""
        if dist.is_initialized() and not self._named_by_ranks:
            dist.destroy_process_group(self._group)


def pack(value: Any) -> Tensor:
    """A nested value as bytes: the length of a JSON header, the header, and the tensors' own bytes.

    Raises CheckpointError, naming the place, for what is no number, text, list, dictionary or dense tensor.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(value, "value", tensors)
    infos = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    header = torch.frombuffer(bytearray(json.dumps([tree, infos]).encode()), dtype=torch.uint8)
    length = torch.tensor([header.numel()]).view(torch.uint8)
    return torch.cat([length, header, *(_bytes_of(t) for t in tensors.values())])


def unpack(data: Tensor) -> Any:
    """The value that `pack` packed."""
    start = 8 + int(data[:8].clone().view(torch.int64))
    tree, infos = json.loads(data[8:start].numpy().tobytes().decode())
    tensors: dict[str, Tensor] = {}
    for name, kind, shape in infos:
        dtype: torch.dtype = getattr(torch, kind)
        count = torch.Size(shape).numel() * dtype.itemsize
        tensors[name] = data[start : start + count].clone().view(dtype).reshape(shape)
        start += count
    return decode(tree, tensors, "value")


def _bytes_of(tensor: Tensor) -> Tensor:
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8) if dense.numel() else torch.empty(0, dtype=torch.uint8)


def _kind(error: BaseException) -> str:
    if isinstance(error, torch.linalg.LinAlgError):
        return "InvalidSystemError"
    return type(error).__name__ if isinstance(error, CompressmError) else "DistributedError"


def _error(message: Mapping[str, str]) -> CompressmError:
    kind, text = getattr(errors, message["error"], DistributedError), message["text"]
    if kind is DistributedError:
        text = f"Rank 0 failed ({text}). Start again from the last checkpoint."
    return kind(text)


def _lost(error: RuntimeError) -> DistributedError:
    return DistributedError(
        f"Another process of this run died or hangs ({error}). Stop all of them and resume from the last checkpoint."
    )
