"""The update of a layer that keeps some of its present states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compressm.adapters.holding import held
from compressm.adapters.update import LayerUpdate, Select, kept_entries


def select_update(
    layer: nn.Module,
    keep: Tensor,
    by_dimension: Sequence[Sequence[str]],
    attributes: Mapping[str, object] | None = None,
) -> LayerUpdate:
    """Keep the entries `keep` of parameters: `by_dimension[k]` names those whose dimension k is that of the states.

    For a bank with a keep-set `(H, r)` for each channel, dimension k - 1 is that of the channels.
    """
    maps = tuple(Select(tuple(names), keep, dim) for dim, names in enumerate(by_dimension) if names)
    tensors = {name: kept_entries(held(layer, name), keep, m.dim) for m in maps for name in m.names}
    return LayerUpdate(keep.shape[-1], tensors, attributes or {}, maps)
