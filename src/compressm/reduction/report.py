"""What is planned and what was done, as values that can be printed, saved and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from compressm.checks import brief, read_record, require_kind
from compressm.errors import ConfigError

FORMAT_VERSION = 1


_MOST_VALUES = 4096  # Hankel singular values of single systems that a record of a bank holds


@dataclass(frozen=True)
class BankSpectrum:
    """The Hankel singular values of a bank's systems: how far the systems differ.

    `largest`, `median` and `smallest` are over the systems, for the first, second, ... value of each. `values` are
    those of each system, to four digits, left out (empty) where the record would hold more than 4096 of them. `states`
    are the balanced states that each system kept, empty where nothing was cut.
    """

    systems: int
    largest: tuple[float, ...]
    median: tuple[float, ...]
    smallest: tuple[float, ...]
    values: tuple[tuple[float, ...], ...] = ()
    states: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Tensor, states: Tensor | None = None) -> BankSpectrum | None:
        """The record of the values `(*h, k)` of a bank; None for a single system's `(k,)`."""
        if values.ndim < 2:
            return None
        flat = values.flatten(0, -2)
        few = flat.numel() <= _MOST_VALUES
        return cls(
            len(flat),
            _floats(flat.amax(0)),
            _floats(flat.median(0).values),
            _floats(flat.amin(0)),
            tuple(tuple(float(f"{v:.4g}") for v in row) for row in flat.tolist()) if few else (),
            () if states is None else tuple(int(n) for n in states.flatten()),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BankSpectrum:
        """The record whose fields are JSON values."""
        largest, median, smallest = (tuple(data[name]) for name in ("largest", "median", "smallest"))
        values = tuple(tuple(row) for row in data["values"])
        return cls(data["systems"], largest, median, smallest, values, tuple(data["states"]))


def mean_spectrum(values: Tensor) -> tuple[float, ...]:
    """The values of a single system, `(k,)`, or their mean over the systems of a bank, `(*h, k)`."""
    return _floats(values.flatten(0, -2).mean(0) if values.ndim > 1 else values)


@dataclass(frozen=True)
class LayerPlan:
    """What a criterion wants of one layer.

    `hankel_singular_values` are those of the balanced system under the Gramians named by `controllability` and
    `observability`; for a bank their mean over its systems, and `bank` tells how far these differ. `planned_order`
    equals `order` where the layer is to stay as it is. `discarded` is the fraction of the sum of the values beyond the
    planned states (for a choice among the present states what it loses of the sum, see `KeepSets`), `bound` 2 * tail,
    the bound on the H-infinity error (of a bank the largest of its systems), where it holds (white infinite-horizon
    Gramians), else None. `reason` says why nothing is to be cut.
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
    bank: BankSpectrum | None = None


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
        """The plan that `to_dict` wrote; ConfigError for another version or a damaged record."""
        return read_record(cls, _checked_version(data), "The plan")


@dataclass(frozen=True)
class LayerReport:
    """What was done to one layer.

    Orders count stored states; `real_order` counts the states of the real system after the cut. `discarded` and `bound`
    are as in `LayerPlan`, for the order really reached. `hinf_error` (a lower estimate from a grid, unless
    `hinf_exact`) and `h2_error` are the norms of G - G_r for the weights as stored, `hinf_norm` and `h2_norm` those of
    G. Where the layer is not stable they are taken over the horizon of the Gramians, and None without one.
    `output_change` is |y_r - y| / |y| on captured inputs, None without any. `controllability` and `observability` name
    the Gramians really used; `fallbacks` says what was tried before. Where the reduced system was fitted to captured
    inputs, `fit_before` and `fit_after` are |y_r - y| / |y|, D left out, on sequences that the fit did not see.
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
    bank: BankSpectrum | None = None
    fit_before: float | None = None
    fit_after: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the layer was cut."""
        return self.order_after != self.order_before

    def __str__(self) -> str:
        """One line: orders, what it cost, what a fit gained, and what could not be done."""
        parts = [f"{self.name or self.layer}: order {self.order_before} -> {self.order_after}"]
        if self.changed:
            parts.append(f"discarded {self.discarded:.2%} of the Hankel singular values")
        if self.output_change is not None:
            parts.append(f"output changed by {self.output_change:.2%}")
        if self.fit_before is not None and self.fit_after is not None:
            parts.append(f"error on inputs left out of the fit {self.fit_before:.2%} -> {self.fit_after:.2%}")
        return ", ".join(parts) + "".join(f"; {text}" for text in self.fallbacks)


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

    def __str__(self) -> str:
        """One line for each layer."""
        return "\n".join(map(str, self.layers)) or "no layer was considered"

    def orders(self) -> dict[str, int]:
        """The order of each layer after the cut."""
        return {layer.name: layer.order_after for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """The report that `to_dict` wrote; ConfigError for another version or a damaged record."""
        return read_record(cls, _checked_version(data), "The report")


def _checked_version(data: object) -> dict[str, object]:
    """A record without its version; ConfigError where that is another one."""
    require_kind("The record", data, Mapping, wanted="a mapping")
    record = dict(data) if isinstance(data, Mapping) else {}
    version = record.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise ConfigError(f"This record has the format version {brief(version)}; this library reads {FORMAT_VERSION}.")
    return record


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
