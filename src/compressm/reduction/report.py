"""What is planned and what was done, as values that can be printed, saved and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compressm.errors import ConfigError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """What a criterion wants of one layer.

    `hankel_singular_values` are those of the balanced system under the Gramians named by `controllability` and
    `observability`. `planned_order` equals `order` where the layer is to stay as it is. `discarded` is the fraction of
    the sum of the values beyond the planned states, `bound` 2 * tail, the bound on the H-infinity error, where
    it holds (white infinite-horizon Gramians), else None. `reason` says why nothing is to be cut.
    """

    name: str
    layer: str
    order: int
    planned_order: int
    planned_states: int
    states_per_slot: int
    hankel_singular_values: tuple[float, ...]
    discarded: float
    bound: float | None
    controllability: str
    observability: str
    reason: str | None = None


@dataclass(frozen=True)
class ReductionPlan:
    """The plan for a model: nothing is changed by it. `unsupported` lists layers that were left alone, with reasons."""

    layers: tuple[LayerPlan, ...]
    unsupported: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReductionPlan:
        """The plan that `to_dict` wrote; ConfigError for another version."""
        _check_version(data)
        return cls(tuple(LayerPlan(**_tuples(d)) for d in data["layers"]), tuple(data["unsupported"]))


@dataclass(frozen=True)
class LayerReport:
    """What was done to one layer.

    Orders count stored states; `real_order` counts the states of the real system after the cut. `discarded` and
    `bound` are as in `LayerPlan`, for the order really reached. `hinf_error` (a lower estimate from a grid, unless
    `hinf_exact`) and `h2_error` are the norms of G - G_r for the weights as stored, `hinf_norm` and `h2_norm` those of
    G (None where the layer is not stable). `output_change` is |y_r - y| / |y| on captured inputs, None without any.
    `controllability` and `observability` name the Gramians really used; `fallbacks` says what was tried before.
    """

    name: str
    layer: str
    order_before: int
    order_after: int
    real_order: int
    hankel_singular_values: tuple[float, ...]
    discarded: float
    bound: float | None
    hinf_error: float | None
    hinf_norm: float | None
    hinf_exact: bool
    h2_error: float | None
    h2_norm: float | None
    output_change: float | None
    controllability: str
    observability: str
    conditioning: float
    fallbacks: tuple[str, ...]
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether the layer was cut."""
        return self.order_after != self.order_before


@dataclass(frozen=True)
class CompressionReport:
    """What was done to a model; layers that were considered and left as they are have equal orders."""

    layers: tuple[LayerReport, ...]
    seconds: float
    unsupported: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def changed(self) -> bool:
        """Whether any layer was cut."""
        return any(layer.changed for layer in self.layers)

    def orders(self) -> dict[str, int]:
        """The order of each layer after the cut."""
        return {layer.name: layer.order_after for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """The report that `to_dict` wrote; ConfigError for another version."""
        _check_version(data)
        layers = tuple(LayerReport(**_tuples(d)) for d in data["layers"])
        return cls(layers, data["seconds"], tuple(data["unsupported"]), tuple(data["warnings"]))


def _check_version(data: Mapping[str, Any]) -> None:
    if data.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"This record has the format version {data.get('format_version')!r}; this library reads {FORMAT_VERSION}."
        )


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
