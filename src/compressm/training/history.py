"""What the compressor did: a list of events, and the orders over time that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressm.checkpoint.tree import decode, encode
from compressm.checks import brief, read_record, require_integer, require_kind
from compressm.errors import CheckpointError, ConfigError
from compressm.reduction.criteria import Budget
from compressm.reduction.report import CompressionReport


@dataclass(frozen=True)
class Cut:
    """A cut was made (or attempted, where no layer was worth cutting) after the step numbered `step`."""

    kind: ClassVar[str] = "cut"
    step: int
    report: CompressionReport

    @property
    def changed(self) -> bool:
        """Whether any layer got smaller."""
        return self.report.changed

    def __str__(self) -> str:
        orders = ", ".join(f"{x.name} {x.order_before} -> {x.order_after}" for x in self.report.layers)
        return f"step {self.step}: {'cut' if self.changed else 'nothing to cut'}, order {orders or 'of no layer'}"


@dataclass(frozen=True)
class RolledBack:
    """The cut at `cut_step`, reported in `report`, was taken back at `step`; training goes on from `cut_step`."""

    kind: ClassVar[str] = "rolled_back"
    step: int
    cut_step: int
    before: float
    after: float
    allowed: float
    report: CompressionReport

    def __str__(self) -> str:
        return (
            f"step {self.step}: the cut at step {self.cut_step} was taken back, the metric went from {self.before:.6g} "
            f"to {self.after:.6g} (allowed change {self.allowed:.6g})"
        )


@dataclass(frozen=True)
class Skipped:
    """The cut at `step` could not be made; the model was left as it was."""

    kind: ClassVar[str] = "skipped"
    step: int
    reason: str

    def __str__(self) -> str:
        return f"step {self.step}: no cut, {self.reason}"


Event = Cut | RolledBack | Skipped


class History:
    """The events in their order, with each layer's order at the start.

    A cut that was rolled back is not among the cuts any more: its report is in the `RolledBack` event.
    """

    def __init__(self, initial: Mapping[str, int], events: tuple[Event, ...] = ()) -> None:
        self.initial = dict(initial)
        self.events = events

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> Event:
        return self.events[index]

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that stand."""
        return tuple(e for e in self.events if isinstance(e, Cut))

    def add(self, event: Event) -> None:
        """Append an event."""
        self.events = (*self.events, event)

    def orders(self) -> dict[str, list[tuple[int, int]]]:
        """Each layer's (step, order): at step 0, and after each cut that stands."""
        series = {name: [(0, order)] for name, order in self.initial.items()}
        for cut in self.cuts:
            for layer in cut.report.layers:
                series.setdefault(layer.name, [(0, layer.order_before)]).append((cut.step, layer.order_after))
        return series

    def last_orders(self) -> dict[str, int]:
        """Each layer's order after the last cut that stands."""
        return {name: series[-1][1] for name, series in self.orders().items()}

    def budgets(self) -> dict[str, Budget]:
        """Each layer's first spectrum and what the cuts that stand have discarded, as sums."""
        found: dict[str, Budget] = {}
        for cut in self.cuts:
            for layer in cut.report.layers:
                if not layer.hankel_singular_values:
                    continue  # an unstable layer that was left alone
                whole = sum(layer.hankel_singular_values)
                before = found.get(layer.name, Budget(whole))
                lost = layer.discarded * whole if layer.changed else 0.0
                found[layer.name] = Budget(before.total, before.spent + lost)
        return found

    def to_dict(self) -> dict[str, object]:
        """A description for JSON."""
        return {"initial": dict(self.initial), "events": [_event_to_dict(e) for e in self.events]}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> History:
        """The history that `to_dict` described; ConfigError where it does not have that form."""
        require_kind("A history", data, Mapping, wanted="a mapping")
        initial, events = data.get("initial"), data.get("events")
        if not isinstance(initial, Mapping) or not isinstance(events, (list, tuple)):
            raise ConfigError("A history needs 'initial' orders and a list of 'events'.")
        for name, order in initial.items():
            require_integer(f"A history's initial order of {name!r}", order, 0)
        return cls({str(k): v for k, v in initial.items()}, tuple(_event_from_dict(e) for e in events))


def _event_to_dict(event: Event) -> dict[str, object]:
    values = dict(vars(event))
    if not isinstance(event, Skipped):
        values["report"] = _lists(event.report.to_dict())
    return {"kind": event.kind, **encode(values, "history", None)}


def _event_from_dict(data: Mapping[str, object]) -> Event:
    kinds: dict[str, type[Event]] = {c.kind: c for c in (Cut, RolledBack, Skipped)}
    name = data.get("kind") if isinstance(data, Mapping) else data
    if not isinstance(name, str) or name not in kinds or not isinstance(data, Mapping):
        raise ConfigError(f"An event of the history is {brief(data)}; wanted one of the kinds {sorted(kinds)}.")
    try:
        values: dict[str, Any] = decode(dict(data), {}, "history")
    except CheckpointError as error:
        raise ConfigError(f"An event of the history is damaged: {error}") from error
    values.pop("kind")
    if "report" in values:
        values["report"] = CompressionReport.from_dict(values["report"])
    return read_record(kinds[name], values, f"An event of the history, '{name}', is damaged: it")


def _lists(value: object) -> object:
    """Tuples as lists, as JSON has them; the report reads both."""
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
