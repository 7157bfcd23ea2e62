"""The model inside what a trainer made of it."""

from __future__ import annotations

from torch import nn


def trained(model: nn.Module) -> nn.Module:
    """What a compressor takes: the model that was given to `torch.compile`, or its DistributedDataParallel wrapper."""
    while "_orig_mod" in model._modules:
        model = model.get_submodule("_orig_mod")
    return model
