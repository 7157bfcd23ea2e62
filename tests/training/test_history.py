"""Events and orders over time, and that JSON keeps them."""

from __future__ import annotations

import json
from math import inf, isnan, nan

import pytest

from compressm.errors import ConfigError
from compressm.reduction.report import CompressionReport, LayerReport
from compressm.training.history import Cut, History, RolledBack, Skipped


def report(before: int, after: int) -> CompressionReport:
    layer = LayerReport(
        name="blocks.0.ssm",
        layer="LRU",
        order_before=before,
        order_after=after,
        real_order=2 * after,
        hankel_singular_values=(3.0, 1.0 / 3.0),
        discarded=0.1,
        bound=None,
        hinf_error=0.1,
        hinf_norm=1.0,
        hinf_exact=False,
        h2_error=0.1,
        h2_norm=1.0,
        output_change=None,
        controllability="data",
        observability="loss",
        conditioning=inf,
        fallbacks=("one",),
        seconds=0.5,
    )
    return CompressionReport((layer,), 0.75, (), ("careful",))


def history() -> History:
    cut, skipped = Cut(10, report(16, 9)), Skipped(20, "a layer is unstable")
    back = RolledBack(35, 30, 0.8, 0.25, 0.05, report(9, 2))
    return History({"blocks.0.ssm": 16}, (cut, skipped, back, Cut(40, report(9, 7))))


def test_orders_follow_from_the_cuts_that_stand() -> None:
    assert history().orders() == {"blocks.0.ssm": [(0, 16), (10, 9), (40, 7)]}
    assert [c.step for c in history().cuts] == [10, 40]
    assert len(history()) == 4
    assert History({"a": 3}).orders() == {"a": [(0, 3)]}


def test_json_round_trip() -> None:
    text = json.dumps(history().to_dict(), allow_nan=False)
    back = History.from_dict(json.loads(text))
    assert back.events == history().events
    assert back.initial == history().initial


def test_numbers_that_json_lacks() -> None:
    events = (RolledBack(3, 1, nan, -inf, 0.1, report(4, 2)),)
    text = json.dumps(History({}, events).to_dict(), allow_nan=False)
    (event,) = History.from_dict(json.loads(text)).events
    assert isinstance(event, RolledBack)
    assert isnan(event.before)
    assert event.after == -inf


def test_events_say_what_happened() -> None:
    cut, skipped, back, _ = (str(e) for e in history())
    assert cut == "step 10: cut, order blocks.0.ssm 16 -> 9"
    assert "unstable" in skipped
    assert "from 0.8 to 0.25" in back
    assert "nothing to cut" in str(Cut(3, report(5, 5)))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"initial": {}, "events": 3},
        {"initial": {}, "events": [{}]},
        {"initial": {}, "events": [{"kind": "skipped", "step": 3}]},
        {"initial": {}, "events": [{"kind": "skipped", "step": 3, "reason": "x", "more": 1}]},
        {"initial": {}, "events": [{"kind": "cut", "step": 3, "report": {}}]},
        {"initial": {}, "events": [{"kind": "cut", "step": 3, "report": 7}]},
        {"initial": {}, "events": [7]},
    ],
)
def test_damaged_records_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        History.from_dict(data)
