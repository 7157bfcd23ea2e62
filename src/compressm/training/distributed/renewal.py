"""Renew a DistributedDataParallel in place after parameters changed their size."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from compressm.errors import SurgeryError

_MIB = 1 << 20
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_renewable(ddp: DistributedDataParallel) -> None:
    """Raise SurgeryError, with the remedy, where a wrapper has an option that cannot be set up a second time."""
    for name, remedy in (
        ("mixed_precision", "use torch.autocast in place of DDP's own mixed precision"),
        ("_delay_all_reduce_params", "leave out delay_all_reduce_named_params"),
        ("_use_python_reducer", "leave torch._dynamo.config.optimize_ddp at its default"),
    ):
        if getattr(ddp, name, None):
            raise SurgeryError(
                f"This DistributedDataParallel uses {name.strip('_')}, which cannot be renewed after a cut. Remedy: "
                f"{remedy}."
            )


def renew(ddp: DistributedDataParallel) -> None:
    """Run the wrapper's constructor again on itself, with the options it was made with.

    Its reducer holds buckets and hooks of the old sizes. The object stays the same, so that whoever refers to it
    (a training loop, a framework) needs to know nothing. Communication hooks, hooks on the wrapper itself, its mode
    and attributes that others have set stay. Nothing is broadcast: the processes must be equal already.
    """
    before = dict(vars(ddp))
    tables: dict[str, dict[int, Any]] = {name: dict(before[name]) for name in vars(nn.Module()) if "_hooks" in name}
    communication = list(before.get("_comm_hooks", ()))
    ddp.__init__(ddp.module, **options(ddp))  # pyright: ignore[reportUnknownArgumentType]
    for hook, state in communication:
        ddp.register_comm_hook(state, hook)
    for name, entries in tables.items():
        vars(ddp)[name].update(entries)
    ddp.training = before["training"]
    ddp.require_backward_grad_sync = before["require_backward_grad_sync"]
    for name, value in before.items():
        if name not in vars(ddp):
            setattr(ddp, name, value)


def options(ddp: DistributedDataParallel) -> dict[str, Any]:
    """The arguments beside the module that make an equal wrapper, as far as this PyTorch knows them."""
    buckets = getattr(ddp, "bucket_bytes_cap_list", [])
    synchronised = getattr(ddp, "forward_sync_buffers", None)
    given: dict[str, Any] = {
        "device_ids": ddp.device_ids,
        "output_device": ddp.output_device,
        "dim": ddp.dim,
        "process_group": ddp.process_group,
        "bucket_cap_mb": None if ddp.bucket_bytes_cap_default else ddp.bucket_bytes_cap / _MIB,
        "bucket_cap_mb_list": [size / _MIB for size in buckets] or None,
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "skip_all_reduce_unused_params": getattr(ddp, "skip_all_reduce_unused_params", False),
        "batched_grad_copy": getattr(ddp, "batched_grad_copy", False),
        "init_sync": False,
    }
    known = signature(type(ddp).__init__).parameters
    if "forward_sync_buffers" in known:
        given["forward_sync_buffers"] = synchronised
    else:
        given["broadcast_buffers"] = getattr(ddp, "broadcast_buffers", True)
    return {name: value for name, value in given.items() if name in known}
