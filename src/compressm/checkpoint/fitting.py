"""Whether a checkpoint fits the objects it is loaded into; nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.registry import LayerRef
from compressm.checkpoint.contents import Named, kind_name, layer_of, model_tensors, parameter_names
from compressm.checkpoint.document import CheckpointStructure, TensorInfo
from compressm.checkpoint.tree import decode
from compressm.errors import CheckpointError, SurgeryError
from compressm.surgery.moments import moments
from compressm.surgery.slots import require_swappable


@dataclass(frozen=True, eq=False)
class Weights:
    """The new value of each tensor of a model, and the layers whose shapes change."""

    values: list[tuple[Named, Tensor]]
    resized: list[LayerRef]


def fit_weights(
    model: nn.Module, layers: Sequence[LayerRef], structure: CheckpointStructure, stored: Mapping[str, Tensor]
) -> Weights:
    """Match the model's tensors with the stored ones by name.

    Raises CheckpointError where names or dtypes differ, shapes differ outside of layers with an adapter, or a tensor
    that the model shares has several values.
    """
    values = {**stored, **{alias: stored[name] for alias, name in structure.aliases.items()}}
    present = list(model_tensors(model, layers))
    required = {named.name for named in present if not named.derived}
    derived = {named.name for named in present if named.derived}
    unexpected = values.keys() - required - derived - structure.derived
    for what, names in (("lacks", required - values.keys()), ("has unknown", unexpected)):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise CheckpointError(f"The checkpoint {what} {listed}. Build the model as it was built for the saved run.")
    chosen: dict[int, tuple[Named, Tensor]] = {}
    resized: dict[str, LayerRef] = {}
    for named in present:
        value = values.get(named.name)
        if value is None:
            continue
        _, other = chosen.setdefault(id(named.tensor), (named, value))
        if other is not value and not torch.equal(other, value):
            raise CheckpointError(
                f"'{named.name}' is shared in this model but was not in the saved one. Do not tie it."
            )
        layer = _fit_tensor(named, value, layers)
        if layer is not None:
            resized[layer.name] = layer
    return Weights(list(chosen.values()), list(resized.values()))


def _fit_tensor(named: Named, value: Tensor, layers: Sequence[LayerRef]) -> LayerRef | None:
    """The layer that this tensor's new shape resizes, None where the shape stays."""
    tensor, name = named.tensor, named.name
    try:
        require_swappable(f"'{name}'", tensor)
    except SurgeryError as error:
        raise CheckpointError(str(error)) from error
    if tensor.dtype != value.dtype:
        raise CheckpointError(
            f"'{name}' is {tensor.dtype} in the model and {value.dtype} in the checkpoint; call "
            f"model.to({value.dtype}) before loading."
        )
    if tensor.shape == value.shape:
        return None
    layer = layer_of(name, layers)
    shapes = f"{tuple(tensor.shape)} in the model and {tuple(value.shape)} in the checkpoint"
    if layer is None:
        raise CheckpointError(
            f"'{name}' has shape {shapes}, and it belongs to no layer with an adapter. Build the model with the sizes "
            f"of the saved run, or register the layer's adapter."
        )
    if tensor.ndim != value.ndim:
        raise CheckpointError(f"'{name}' has shape {shapes}; a cut never changes the number of dimensions.")
    return layer


def fit_optimizer(
    described: Any, model: nn.Module, optimizer: Optimizer, weights: Weights, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    """The optimizer's state dict. Raises CheckpointError where kind, groups or shapes do not fit `optimizer`."""
    kind, names = described["kind"], described["names"]
    if kind != kind_name(optimizer):
        raise CheckpointError(f"{where} is a {kind}, but a {kind_name(optimizer)} is given. Make the same kind.")
    present = parameter_names(model, optimizer)
    if names != present:
        raise CheckpointError(
            f"{where}: its groups of parameters {_brief(names)} differ from those given, {_brief(present)}. Make the "
            f"optimizer as it was made in the saved run."
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes: dict[int, torch.Size] = {id(named.tensor): value.shape for named, value in weights.values}
    state = decode(described["state"], tensors, f"{where}.state")
    groups = decode(described["groups"], tensors, f"{where}.param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) != len(present):
        raise CheckpointError(f"{where} is malformed. Use another checkpoint.")
    for index, entry in state.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(entry, dict):
            raise CheckpointError(f"{where} has state for parameter {index!r} of {len(parameters)}. Use another one.")
        wanted = shapes[id(parameters[index])] if id(parameters[index]) in shapes else parameters[index].shape
        for key in moments(entry):
            if entry[key].shape != wanted:
                raise CheckpointError(
                    f"{where}: '{key}' of parameter {index} is {TensorInfo.of(entry[key])}; wanted shape "
                    f"{tuple(wanted)}. Use another checkpoint."
                )
    for group, members in zip(groups, present, strict=True):
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise CheckpointError(f"{where}.param_groups is malformed. Use another checkpoint.")
        if len(group["params"]) != len(members):
            raise CheckpointError(f"{where}.param_groups names {len(group['params'])} of {len(members)} parameters.")
    return {"state": state, "param_groups": groups}


def _brief(names: Sequence[Sequence[str | None]]) -> str:
    text = "; ".join(", ".join(str(name) for name in group) for group in names)
    return f"({text if len(text) <= 200 else text[:200] + '...'})"
