"""The tensors of a model that a checkpoint holds, under all their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.registry import LayerRef


@dataclass(frozen=True, eq=False)
class Named:
    """A tensor and a name of it. Derived ones need not be there when a checkpoint is loaded."""

    name: str
    tensor: Tensor
    derived: bool


def model_tensors(model: nn.Module, layers: Sequence[LayerRef]) -> Iterator[Named]:
    """Parameters and persistent buffers under all their names, and all that layers with an adapter hold besides.

    A cut may resize buffers that a state dict leaves out and plain tensor attributes; both count as derived.
    """
    compressible = {id(module) for layer in layers for module in layer.module.modules()}
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield Named(dot + name, parameter, False)
        for name, buffer in module._buffers.items():
            derived = name in module._non_persistent_buffers_set
            if buffer is not None and (not derived or id(module) in compressible):
                yield Named(dot + name, buffer, derived)
        if id(module) in compressible:
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.is_leaf and not value.is_inference():
                    yield Named(dot + name, value, True)


def modules_with_state(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that define `get_extra_state`, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def layer_of(name: str, layers: Sequence[LayerRef]) -> LayerRef | None:
    """The layer with an adapter that a tensor's name lies in."""
    inside = (layer for layer in layers if not layer.name or name.startswith(f"{layer.name}."))
    return max(inside, key=lambda layer: len(layer.name), default=None)


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[list[str | None]]:
    """For each group of an optimizer the model's names of its parameters, None for one that is not the model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def kind_name(value: object) -> str:
    """The full name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
