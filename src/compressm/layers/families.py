"""The kinds of state space layers that a model can be built of, and the settings that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from compressm.layers.base import SequenceLayer
from compressm.layers.dense import DenseSSM
from compressm.layers.dss import DSS, DSSKernel
from compressm.layers.hippo import DiagonalInit
from compressm.layers.lru import LRU
from compressm.layers.lssl import LSSL
from compressm.layers.oscillators import DampedLinOSS, LinOSS, Rule
from compressm.layers.rotations import RotationSSM
from compressm.layers.s4 import S4
from compressm.layers.s4d import S4D
from compressm.layers.s5 import S5
from compressm.ops.sampling import Sampling


class LayerKind(Enum):
    """The state space layer inside each block."""

    LRU = "lru"
    DENSE = "dense"
    DSS = "dss"
    D_LINOSS = "d-linoss"
    LINOSS = "linoss"
    LSSL = "lssl"
    ROTATIONS = "rotations"
    S4 = "s4"
    S4D = "s4d"
    S5 = "s5"


@dataclass(frozen=True)
class Family:
    """How a layer of one kind is made: `layer(width, order, **settings)` with settings named in `options`.

    `options` are names of settings of a model; where the value is an Enum, its values are the choices.
    """

    layer: Callable[..., SequenceLayer]
    options: Mapping[str, type[Enum] | None] = field(default_factory=dict)


_RING: Mapping[str, None] = dict.fromkeys(("r_min", "r_max", "max_phase"))
_STEPS: Mapping[str, None] = dict.fromkeys(("dt_min", "dt_max"))
_SAMPLED: Mapping[str, type[Enum] | None] = {"init": DiagonalInit, "discretization": Sampling, **_STEPS}

FAMILIES: Mapping[LayerKind, Family] = {
    LayerKind.LRU: Family(LRU, _RING),
    LayerKind.DENSE: Family(DenseSSM, _RING),
    LayerKind.DSS: Family(DSS, {"init": DiagonalInit, "discretization": DSSKernel, **_STEPS, "length": None}),
    LayerKind.D_LINOSS: Family(DampedLinOSS, _RING),
    LayerKind.LINOSS: Family(LinOSS, {"discretization": Rule}),
    LayerKind.LSSL: Family(LSSL, _STEPS),
    LayerKind.ROTATIONS: Family(RotationSSM, _RING),
    LayerKind.S4: Family(S4, _STEPS),
    LayerKind.S4D: Family(S4D, _SAMPLED),
    LayerKind.S5: Family(S5, _SAMPLED),
}
"""The only table from kinds to constructors."""


def kind_of(layer: SequenceLayer) -> LayerKind | None:
    """The kind of a layer; None for a class that is in no family."""
    return next((kind for kind, family in FAMILIES.items() if family.layer is type(layer)), None)
