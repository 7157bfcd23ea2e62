"""Recognise wrapped models, which hold their own view of the parameters and must not be cut from outside."""

from __future__ import annotations

from torch import nn

from compressm.checks import require_kind
from compressm.errors import AdapterError, SurgeryError

_REMEDIES = {
    "DistributedDataParallel": "cut `model.module` on every process with the same plan, then wrap it again",
    "DataParallel": "pass `model.module`; replicas are made anew in each forward pass",
    "FullyShardedDataParallel": "cut the plain model first, then shard it",
    "FSDPModule": "give it to InTrainingCompressor, or cut the plain model first, then call fully_shard",
    "DeepSpeedEngine": "cut the plain model first, then call deepspeed.initialize",
    "ScriptModule": "cut the Python module first, then script or trace it",
    "GraphModule": "cut the original module first, then trace it",
}


def require_plain(model: nn.Module) -> None:
    """Raise SurgeryError with the remedy where `model`, or a module inside, is wrapped, sharded or scripted.

    Modules that `torch.compile` returned are views of plain ones, whose parameters they look up in every pass.
    """
    require_kind("model", model, nn.Module, error=AdapterError)
    for name, module in model.named_modules():
        for cls in type(module).__mro__:
            remedy = _REMEDIES.get(cls.__name__)
            if remedy is not None and not cls.__module__.startswith("compressm."):
                where = f"its module '{name}'" if name else "it"
                raise SurgeryError(f"The model cannot be cut: {where} is a {cls.__name__}. Remedy: {remedy}.")


def is_sharded(model: nn.Module) -> bool:
    """Whether `torch.distributed.fsdp.fully_shard` was called on the model or on a module inside."""
    return any(cls.__name__ == "FSDPModule" for module in model.modules() for cls in type(module).__mro__)
