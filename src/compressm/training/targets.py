"""Finding the layers that a compressor cuts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from compressm.adapters.holding import identity_of
from compressm.adapters.mirroring import mirrored_layer
from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.errors import AdapterError, ConfigError, SurgeryError
from compressm.surgery.wrappers import is_sharded


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


def require_their_optimizer(layers: Sequence[LayerRef], optimizers: Sequence[Optimizer]) -> None:
    """Raise ConfigError where the optimizers hold none of the layers' trainable parameters."""
    trainable = {id(p) for layer in layers for p in layer.module.parameters() if p.requires_grad}
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if trainable and not trainable & held:
        raise ConfigError(
            f"No optimizer given holds a parameter of the state space layers ({', '.join(x.name for x in layers)}). "
            f"Give the one that trains this model, made after the model was moved to its device."
        )


def require_mirrors(layers: Sequence[LayerRef], mirrors: Sequence[nn.Module]) -> None:
    """Raise SurgeryError unless each of `mirrors` is a copy of the model that has `layers`, whole on each process."""
    for mirror in mirrors:
        if is_sharded(mirror):
            raise SurgeryError(f"The mirror {type(mirror).__name__} is sharded. Make averages after the last cut.")
        for layer in layers:
            mirrored_layer(mirror, layer)


def _distinct(layers: list[LayerRef]) -> list[LayerRef]:
    distinct: dict[frozenset[int], LayerRef] = {}
    for layer in layers:
        distinct.setdefault(identity_of(layer.module), layer)
    return list(distinct.values())
