"""What an adapter hands to surgery: new values, new attributes, and how neighbours of a parameter follow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


class StateMap(ABC):
    """How covectors (gradients, first moments) and their second moments follow the named parameters through a cut.

    Of a complex parameter, covectors are complex and second moments a real view `(*, 2)`: those of real and imaginary
    part.
    """

    names: tuple[str, ...]

    @abstractmethod
    def covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The new covector of each named parameter from the old ones; None where no map exists (reset instead)."""

    @abstractmethod
    def variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The new elementwise second moment of each named parameter; None where no map exists (reset instead)."""


@dataclass(frozen=True)
class Reset(StateMap):
    """No map exists: whatever lives beside these parameters starts anew."""

    names: tuple[str, ...]

    def covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """There is no map."""
        return None

    def variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """There is no map."""
        return None


@dataclass(frozen=True)
class Select(StateMap):
    """The cut keeps the entries `indices` along `dim` (0 or more); exact for first and second moments."""

    names: tuple[str, ...]
    indices: Tensor
    dim: int

    def covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The kept entries."""
        return {n: kept_entries(old[n], self.indices, self.dim) for n in self.names}

    def variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The kept entries."""
        return self.covectors(old)


def kept_entries(tensor: Tensor, indices: Tensor, dim: int) -> Tensor:
    """The entries `indices` `(r,)` along `dim`, or `(H, r)` with H the size of the dimension before `dim`; a copy."""
    indices = indices.to(tensor.device)
    if indices.ndim == 1:
        return torch.index_select(tensor, dim, indices)
    around = (1,) * (dim - 1), (1,) * (tensor.ndim - dim - 1)
    return torch.take_along_dim(tensor, indices.reshape(*around[0], *indices.shape, *around[1]), dim)


@dataclass(frozen=True)
class Pullback(StateMap):
    """Covectors of several parameters follow jointly, as through the adjoint of the embedding of new weights in old.

    `covector_map` is exact (the chain rule). `variance_map` gives second moments of a sensible size for the new
    entries: they have no exact map.
    """

    names: tuple[str, ...]
    covector_map: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    variance_map: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

    def covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Through the chain rule."""
        return self.covector_map(old)

    def variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Of the size that `variance_map` gives."""
        return self.variance_map(old)


@dataclass(frozen=True)
class LayerUpdate:
    """The new values of one layer. Nothing is applied; the tensors share no memory with the layer.

    `tensors` maps names inside the layer (dots for nested modules) of parameters, buffers or plain tensor attributes
    to their new values; `attributes` maps names to other new values (integer sizes, say). Every resized parameter
    is named by exactly one of `maps`. `order` is what `read` returns as the order after the update.
    """

    order: int
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, object] = field(default_factory=dict)
    maps: tuple[StateMap, ...] = ()
