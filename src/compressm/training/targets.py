"""Finding the layers that a compressor cuts."""

from __future__ import annotations

from torch import nn

from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.errors import AdapterError


def require_layers(model: nn.Module, adapters: Adapters | None) -> list[LayerRef]:
    """The layers of `model` that have an adapter, of those that share all their parameters the first.

    Raises AdapterError, naming what was looked at, where there is none.
    """
    layers = _distinct(find_layers(model, adapters))
    if not layers:
        kinds = sorted({type(m).__name__ for m in model.modules()})
        raise AdapterError(
            f"{type(model).__name__} has no state space layer that an adapter knows; looked at modules of the kinds "
            f"{', '.join(kinds)}. Register an adapter for yours (compressm.adapters.register_adapter) or give "
            "adapters={TheirLayer: TheirLayerAdapter()}."
        )
    return layers


def _distinct(layers: list[LayerRef]) -> list[LayerRef]:
    distinct: dict[frozenset[int], LayerRef] = {}
    for layer in layers:
        parameters = frozenset(id(p) for p in layer.module.parameters())
        distinct.setdefault(parameters or frozenset({id(layer.module)}), layer)
    return list(distinct.values())
