"""Cut models among Hugging Face's: their sizes in the config, so that `from_pretrained` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compressm.adapters.registry import Adapters, find_layers
from compressm.errors import CheckpointError
from compressm.surgery.parameters import hold
from compressm.surgery.slots import find_attribute

KEY = "compressm_sizes"
"""The config's attribute: for each layer its order, and the shape of each of its tensors."""


def write_sizes(model: nn.Module, config: object, adapters: Adapters | None = None) -> None:
    """Store the present sizes of the model's state space layers as `config.compressm_sizes`."""
    sizes = {
        layer.name: {
            "order": layer.adapter.read(layer.module).order,
            "shapes": {name: list(tensor.shape) for name, tensor in _tensors(layer.module).items()},
        }
        for layer in find_layers(model, adapters)
    }
    setattr(config, KEY, sizes)


def shrink_to_config(model: nn.Module, config: object, adapters: Adapters | None = None) -> None:
    """Give a model that was just built at full size the sizes in `config.compressm_sizes`, if there are any.

    It belongs at the end of the `__init__` of a PreTrainedModel, where it works on the meta device too; the weights
    that are left are the first ones along each dimension, until `from_pretrained` loads the stored ones.

    Raises CheckpointError where the config names layers or shapes that the model cannot take.
    """
    sizes: Mapping[str, Any] | None = getattr(config, KEY, None)
    if not sizes:
        return
    layers = {layer.name: layer for layer in find_layers(model, adapters)}
    for name, size in sizes.items():
        if name not in layers:
            raise CheckpointError(f"config.{KEY} names the layer '{name}'; this model has {sorted(layers)}.")
        layer = layers[name]
        tensors = _tensors(layer.module)
        for inner, shape in size["shapes"].items():
            tensor = tensors.get(inner)
            if (
                tensor is None
                or len(shape) != tensor.ndim
                or any(n > have for n, have in zip(shape, tensor.shape, strict=True))
            ):
                found = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"config.{KEY} has shape {tuple(shape)} for '{inner}' of the layer '{name}', which is built with "
                    f"{found}; a cut model is built at its full size first."
                )
            if tuple(shape) != tuple(tensor.shape):
                hold(tensor, tensor.detach()[tuple(slice(n) for n in shape)].clone())
        for attribute, value in layer.adapter.prepare(layer.module, size["order"]).items():
            find_attribute(name, layer.module, attribute).assign(value)


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in layer.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
