"""Let `load_state_dict` take the weights of a cut model, whoever calls it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressm.adapters.registry import Adapters, LayerRef, check_adapters, find_layers
from compressm.adapters.uncompiled import uncompiled
from compressm.errors import CheckpointError, CompressmError
from compressm.surgery.parameters import swap
from compressm.surgery.slots import find_attribute, require_swappable


def accept_cut_weights(model: nn.Module, adapters: Adapters | None = None) -> RemovableHandle:
    """From now on `model.load_state_dict(state)` first gives the state space layers the shapes that `state` has.

    So a model built at full size loads the state dict of a cut one, from whatever file a trainer keeps it in. Only
    layers with an adapter are resized, in place: optimizers made before stay valid. Copies of the model (an
    exponential moving average) made from now on accept cut weights too. Where a layer's tensors are not all there or
    differ in their number of dimensions nothing is resized, and PyTorch reports what does not fit. Returns a handle
    whose `remove()` ends this.

    Loading raises SurgeryError where a tensor that must be resized cannot be (sharded, quantised, ...), and
    CheckpointError where the stored tensors do not make up a layer; all shapes are as before then.
    """
    check_adapters(adapters)
    handle: RemovableHandle = uncompiled(model).register_load_state_dict_pre_hook(_Resize(adapters))
    return handle


def resize_layers_like(
    model: nn.Module, state: Mapping[str, Any], prefix: str = "", adapters: Adapters | None = None
) -> tuple[str, ...]:
    """Give the tensors of state space layers whose shape differs in `state` the shape and the value they have there.

    Names in `state` begin with `prefix`. Returns the names of the layers that were resized. Raises what loading does
    after `accept_cut_weights`.
    """
    jobs = [
        (layer, changes)
        for layer in find_layers(model, adapters)
        if (changes := _changes(layer, state, f"{prefix}{layer.name}." if layer.name else prefix))
    ]
    with ExitStack() as steps:
        for layer, changes in jobs:
            for name, (tensor, value) in changes.items():
                require_swappable(f"Layer '{layer.name}': '{name}'", tensor)
                swap(tensor, value.detach().to(tensor.device, tensor.dtype, copy=True).contiguous(), steps)
        for layer, _ in jobs:
            _set_attributes(layer, steps)
        steps.pop_all()
    return tuple(layer.name for layer, _ in jobs)


@dataclass(frozen=True, eq=False)
class _Resize:
    """The hook; PyTorch gives it the module, so that a deep copy of the model has its own."""

    adapters: Adapters | None

    def __call__(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
        resize_layers_like(module, state_dict, prefix, self.adapters)


def _changes(layer: LayerRef, state: Mapping[str, Any], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors of a layer that change their shape with their new values; none where `state` does not fit."""
    changes: dict[str, tuple[Tensor, Tensor]] = {}
    for name, tensor in layer.module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # extra state
            continue
        value = state.get(prefix + name)
        if not isinstance(value, Tensor) or value.ndim != tensor.ndim:
            return {}
        if value.is_complex() and not tensor.is_complex():
            return {}
        if value.shape != tensor.shape:
            changes[name] = tensor, value
    return changes


def _set_attributes(layer: LayerRef, steps: ExitStack) -> None:
    """Set what a layer of its new order carries besides tensors, and check that it is a system."""
    where = f"The layer '{layer.name}' cannot take the stored weights"
    try:
        with torch.no_grad():
            order = layer.adapter.read(layer.module).order
            for name, value in layer.adapter.prepare(layer.module, order).items():
                slot = find_attribute(layer.name, layer.module, name)
                steps.callback(slot.restorer())
                slot.assign(value)
            found = layer.adapter.read(layer.module).order
    except (CompressmError, RuntimeError, IndexError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}. Save and load with compressm.checkpoint instead.") from error
    if found != order:
        raise CheckpointError(f"{where}: its order is {found}, by its tensors {order}. Use another checkpoint.")
