"""The settings of a sequence model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError
from compressm.layers.base import LARGEST_SIZE, member
from compressm.layers.families import FAMILIES, LayerKind
from compressm.layers.lru import check_ring
from compressm.layers.norm import NormKind


class Task(Enum):
    """What the head of a model gives."""

    CLASSIFY = "classify"  # one vector a sequence, from the mean over its valid steps
    SEQUENCE = "sequence"  # one vector a step


_RING = ("r_min", "r_max", "max_phase")
_OPTIONAL = ("init", "discretization", "dt_min", "dt_max", "length")
_LAYER_OPTIONS = (*_RING, *_OPTIONAL)
_LEAST = {"inputs": 1, "outputs": 1, "width": 1, "order": 0, "blocks": 0}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and kinds of a `SequenceModel`; the defaults are CompreSSM's sequential MNIST model (arXiv 2510.02823).

    With a `vocabulary` the input is token ids (batch, L), embedded; otherwise (batch, L, inputs), through a linear
    encoder. Enums may be given by value.

    The last settings belong to some kinds of layers only, see `compressm.layers.families`: `r_min`, `r_max` and
    `max_phase` describe a ring of initial poles; `init` names the initial poles, `discretization` how a continuous
    system is sampled, `dt_min`, `dt_max` the range of initial step sizes, and `length` the number of steps that a
    kernel is normalised over. None leaves a kind its own default.

    Raises ConfigError for a value of the wrong type or outside its range, and for a setting that the layer has not.
    """

    layer: LayerKind = LayerKind.LRU
    inputs: int = 1
    outputs: int = 10
    width: int = 8
    order: int = 256
    blocks: int = 1
    task: Task = Task.CLASSIFY
    vocabulary: int | None = None
    norm: NormKind = NormKind.BATCH
    dropout: float = 0.1
    bidirectional: bool = False
    r_min: float = 0.9
    r_max: float = 0.999
    max_phase: float = 2 * math.pi
    init: str | None = None
    discretization: str | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("layer", LayerKind), ("task", Task), ("norm", NormKind)):
            object.__setattr__(self, name, member(kind, getattr(self, name), name))
        for name, least in _LEAST.items():
            require_integer(name, getattr(self, name), least, most=LARGEST_SIZE)
        if self.vocabulary is not None:
            require_integer("vocabulary", self.vocabulary, 1, most=LARGEST_SIZE)
        if self.length is not None:
            require_integer("length", self.length, 1, most=LARGEST_SIZE)
        for name in ("dropout", "r_min", "r_max", "max_phase", "dt_min", "dt_max"):
            value = getattr(self, name)
            optional = value is None and name in _OPTIONAL
            if not optional and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"{name} is {value!r}; wanted a number.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; wanted 0 <= dropout < 1.")
        if not isinstance(self.bidirectional, bool):
            raise ConfigError(f"bidirectional is {self.bidirectional!r}; wanted true or false.")
        check_ring("ModelConfig", self.r_min, self.r_max, self.max_phase)
        self._check_options()

    def layer_options(self) -> dict[str, object]:
        """The settings that the constructor of this kind of layer takes beside width and order."""
        chosen = {name: getattr(self, name) for name in FAMILIES[self.layer].options}
        return {name: value for name, value in chosen.items() if value is not None}

    def with_layer(self, layer: LayerKind) -> ModelConfig:
        """The same model with layers of this kind, at their own defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(self) if f.name in _LAYER_OPTIONS}
        return dataclasses.replace(self, layer=layer, **defaults)  # type: ignore[arg-type]  # values of these fields

    def to_dict(self) -> dict[str, object]:
        """The settings as plain values, for JSON or YAML."""
        return {k: v.value if isinstance(v, Enum) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """The settings from plain values; raises ConfigError for an unknown name."""
        require_kind("The model's settings", values, Mapping, wanted="a mapping")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise ConfigError(f"Unknown model settings {unknown}; wanted some of {known}.")
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every value

    def _check_options(self) -> None:
        taken = FAMILIES[self.layer].options
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in _LAYER_OPTIONS:
            value = getattr(self, name)
            if name not in taken and value != defaults[name]:
                raise ConfigError(
                    f"{name} is {value!r}, but a layer of the kind {self.layer.value!r} has no such setting; it has "
                    f"{', '.join(taken) or 'none of its own'}."
                )
            choices = taken.get(name)
            if choices is not None and value is not None:
                member(choices, value, name)
