"""The kinds of state space layers that a model can be built of, and the settings that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from compressm.layers.base import SequenceLayer
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU


class LayerKind(Enum):
    """The state space layer inside each block."""

    LRU = "lru"
    DENSE = "dense"


@dataclass(frozen=True)
class Family:
    """How a layer of one kind is made: `layer(width, order, **settings)` with settings named in `options`.

    `options` are names of settings of a model; where the value is an Enum, its values are the choices.
    """

    layer: Callable[..., SequenceLayer]
    options: Mapping[str, type[Enum] | None] = field(default_factory=dict)


_RING: Mapping[str, None] = dict.fromkeys(("r_min", "r_max", "max_phase"))

FAMILIES: Mapping[LayerKind, Family] = {
    LayerKind.LRU: Family(LRU, _RING),
    LayerKind.DENSE: Family(DenseSSM, _RING),
}
"""The only table from kinds to constructors."""
