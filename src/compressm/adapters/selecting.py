"""The update of a layer that keeps some of its present states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressm.adapters.holding import held
from compressm.adapters.update import LayerUpdate, Select


def select_update(layer: nn.Module, keep: Tensor, by_dimension: Sequence[Sequence[str]]) -> LayerUpdate:
    """Keep the entries `keep` of parameters: `by_dimension[k]` names those whose dimension k is that of the states."""
    maps = tuple(Select(tuple(names), keep, dim) for dim, names in enumerate(by_dimension) if names)
    tensors = {name: _selected(held(layer, name), keep, m.dim) for m in maps for name in m.names}
    return LayerUpdate(len(keep), tensors, maps=maps)


def _selected(tensor: Tensor, keep: Tensor, dim: int) -> Tensor:
    return torch.index_select(tensor, dim, keep.to(tensor.device))
