"""A cut that rank 0 made, as a nested value, and the other processes' way to the same state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.holding import identity_of
from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import DistributedError
from compressm.surgery.optimizer import PreparedState
from compressm.surgery.parameters import apply_updates
from compressm.surgery.saved_optimizer import placed


def describe_layers(
    model: nn.Module, names: Sequence[str], optimizers: Sequence[Optimizer], adapters: Adapters | None
) -> dict[str, Any]:
    """Order, tensors and optimizer state of the layers of these names, and of those tied to them, as they are now."""
    layers = find_layers(model, adapters)
    chosen = {identity_of(ref.module) for ref in layers if ref.name in names}
    return {ref.name: _describe(ref, optimizers) for ref in layers if identity_of(ref.module) in chosen}


def follow(
    model: nn.Module, described: Mapping[str, Any], optimizers: Sequence[Optimizer], adapters: Adapters | None
) -> None:
    """Give layers the order, tensors and optimizer state that `describe_layers` found, all of them or none.

    Raises SurgeryError where they do not fit this model, DistributedError where it has no such layer.
    """
    layers = {ref.name: ref for ref in find_layers(model, adapters)}
    if missing := sorted(described.keys() - layers.keys()):
        raise DistributedError(f"Rank 0 cut the layers {missing}, which this process's model does not have.")
    items = [(name, layers[name].module, _update(layers[name], entry)) for name, entry in described.items()]
    homes = [{p: g for g in optimizer.param_groups for p in g["params"]} for optimizer in optimizers]
    prepared = PreparedState()
    for name, entry in described.items():
        own = dict(layers[name].module.named_parameters())
        for index, states in enumerate(entry["optimizers"]):
            optimizer = optimizers[index]
            for inner, state in states.items():
                parameter = own[inner]
                new = None if state is None else placed(state, parameter, homes[index][parameter])
                if new is not None or parameter in optimizer.state:
                    prepared.entries[parameter] = (optimizer, new)
    changed = {p for name in described for p in layers[name].module.parameters()}
    prepared.restarted.extend(
        optimizer
        for optimizer, home in zip(optimizers, homes, strict=True)
        if isinstance(optimizer, torch.optim.LBFGS) and not changed.isdisjoint(home)
    )
    with ExitStack() as steps:
        steps.callback(apply_updates(items).undo)
        prepared.commit()
        steps.pop_all()


def _describe(ref: LayerRef, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    own = dict(ref.module.named_parameters())
    states = [_states(optimizer, own) for optimizer in optimizers]
    return {"order": ref.adapter.read(ref.module).order, "tensors": dict(_tensors(ref.module)), "optimizers": states}


def _states(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state beside those of the parameters that the optimizer holds; None where there is none."""
    if isinstance(optimizer, torch.optim.LBFGS):  # one history of all parameters, which a cut ends
        return {}
    held = {p for group in optimizer.param_groups for p in group["params"]}
    return {
        name: dict(optimizer.state[p]) if p in optimizer.state else None for name, p in parameters.items() if p in held
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by their names inside the layer."""
    found: dict[str, Tensor] = {}
    for prefix, inner in module.named_modules():
        tables = {**vars(inner), **inner._buffers, **inner._parameters}
        for name, value in tables.items():
            if isinstance(value, Tensor) and value.is_leaf:
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _update(ref: LayerRef, entry: Mapping[str, Any]) -> LayerUpdate:
    tensors: dict[str, Tensor] = entry["tensors"]
    parameters = tuple(name for name, _ in ref.module.named_parameters(remove_duplicate=False))
    attributes = ref.adapter.prepare(ref.module, entry["order"])
    return LayerUpdate(entry["order"], tensors, attributes, (Reset(parameters),))
