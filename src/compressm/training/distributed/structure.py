"""What must be the same on all processes, as text that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.errors import DistributedError
from compressm.training.distributed.channel import Channel


def describe(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, str]:
    """Shape and dtype of each tensor of a model and of the optimizer state beside it, by name."""
    names = {p: name for name, p in model.named_parameters()}
    found = {f"parameter '{name}'": _tensor(p) for name, p in model.named_parameters()}
    found |= {f"buffer '{name}'": _tensor(b) for name, b in model.named_buffers()}
    for index, optimizer in enumerate(optimizers):
        where = f"optimizer {index}"
        found[where] = type(optimizer).__name__
        for number, group in enumerate(optimizer.param_groups):
            for place, p in enumerate(group["params"]):
                entry = optimizer.state.get(p, {})
                state = {key: _tensor(v) if isinstance(v, Tensor) else type(v).__name__ for key, v in entry.items()}
                found[f"{where}, group {number}, parameter {place} ('{names.get(p)}')"] = json.dumps(
                    state, sort_keys=True
                )
    return found


def require_equal(channel: Channel, described: Mapping[str, str]) -> None:
    """Raise DistributedError on every process, naming what differs and where, unless all described the same.

    In the ordinary case only a checksum travels.
    """
    text = json.dumps(dict(described), sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    checksums: list[str] = channel.gather(checksum)
    if len(set(checksums)) == 1:
        return
    everywhere: list[dict[str, Any]] = channel.gather(dict(described))
    first = everywhere[0]
    for rank, other in enumerate(everywhere):
        for key in (*first, *(k for k in other if k not in first)):
            here, there = first.get(key, "absent"), other.get(key, "absent")
            if here != there:
                count = sum(each != first for each in everywhere)
                raise DistributedError(
                    f"The processes of this run do not agree: {key} is {here} on rank 0 and {there} on rank {rank} "
                    f"({count} of {len(everywhere)} ranks differ from rank 0). Training on would average gradients of "
                    f"different models. Start every process with the same model, optimizer and settings, or resume "
                    f"all of them from one checkpoint."
                )


def _tensor(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
