"""The guard takes a cut back so that nothing remains of it."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import pytest
import torch

from compressm.errors import ConfigError
from compressm.reduction.criteria import FixedFraction, FixedOrder
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings
from compressm.training import At, Cut, Guard, RolledBack, Skipped

RunFactory = Callable[..., Any]
Compare = Callable[..., list[str]]


FIXED = (FixedOrder(8), FixedOrder(5))


def test_a_guard_looks_before_the_next_cut_of_a_short_run(make_run: RunFactory) -> None:
    """The default preset cuts a run of 20 steps at 2, 4, 6, 8."""
    seen: list[int] = []

    def metric() -> float:
        seen.append(run.compressor.steps)
        return 1.0

    guard = Guard(metric, allowed=0.1, higher_is_better=True, probe_after=50)
    run = make_run(total_steps=20, settings=CompressionSettings(criterion=FixedFraction(0.2)), guard=guard)
    run.train(20)
    assert [event.step for event in run.compressor.history] == [2, 4, 6, 8]
    assert seen == [2, 4, 4, 6, 6, 8, 8, 10]  # before each cut, and before the next one


class Readings:
    """A metric that gives its values one after the other."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self) -> float:
        return self.values.pop(0)


def guarded(make_run: RunFactory, *values: float, schedule: At | None = None, **changes: Any) -> Any:
    settings = {"allowed": 0.1, "higher_is_better": True, "probe_after": 3} | changes
    guard = Guard(Readings(*values), **settings)
    return make_run(schedule=schedule or At((4, 9)), criteria=FIXED, guard=guard)


def test_after_a_rollback_the_run_is_one_that_was_never_cut(make_run: RunFactory, compare: Compare) -> None:
    uncut = make_run(compress=False)
    wanted = {}
    for step in range(1, 14):
        uncut.train(1)
        wanted[step] = uncut.save()
    run = guarded(make_run, 0.9, 0.5)
    (cut,) = run.train(6)
    assert isinstance(cut, Cut)
    assert run.orders() == [8, 8]
    (event,) = run.train(1)
    assert event == RolledBack(7, 4, 0.9, 0.5, 0.1, cut.report)
    assert run.compressor.steps == 4
    assert compare(run.save() | {"compressor": None}, wanted[4]) == []
    run.train(9)
    assert run.orders() == [12, 12]  # none of the later cuts is made
    assert compare(run.save() | {"compressor": None}, wanted[13]) == []
    assert run.compressor.history.events == (event,)
    assert not run.compressor.pending_probe
    assert all(series == [(0, 12)] for series in run.compressor.history.orders().values())
    assert run.compressor.history.budgets() == {}


def test_the_refused_cut_is_not_tried_again_but_later_ones_are(make_run: RunFactory) -> None:
    run = guarded(make_run, 0.9, 0.5, 0.9, 0.9, stop_after_rollback=False)
    run.train(3 + 12)
    assert [(type(e).__name__, e.step) for e in run.compressor.history] == [("RolledBack", 7), ("Cut", 9)]
    assert run.orders() == [5, 5]


def test_the_last_cut_is_probed_too(make_run: RunFactory) -> None:
    run = guarded(make_run, 0.9, 0.9, 0.9, 0.2)
    run.train(12)
    assert [(type(e).__name__, e.step) for e in run.compressor.history] == [("Cut", 4), ("RolledBack", 12)]
    assert run.orders() == [8, 8]
    assert run.compressor.steps == 9


def test_a_probe_that_the_end_of_the_run_cuts_short_is_settled_by_finish(make_run: RunFactory) -> None:
    run = guarded(make_run, 0.9, 0.2, schedule=At((4,)))
    with run.compressor as compressor:
        run.train(5)
        assert compressor.pending_probe
    assert isinstance(compressor.history[-1], RolledBack)
    assert run.orders() == [12, 12]


def test_an_error_in_the_loop_leaves_the_model_as_it_is(make_run: RunFactory) -> None:
    run = guarded(make_run, 0.9, schedule=At((4,)))

    def loop() -> None:
        with run.compressor:
            run.train(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert run.orders() == [8, 8]
    assert not run.compressor.pending_probe


def test_probe_and_next_cut_at_the_same_step(make_run: RunFactory) -> None:
    stands = guarded(make_run, 0.9, 0.9, 0.9, 0.9, schedule=At((4, 7)))
    stands.train(11)
    assert stands.orders() == [5, 5]
    falls = guarded(make_run, 0.9, 0.1, schedule=At((4, 7)))
    falls.train(11)
    assert falls.orders() == [12, 12]


def test_nan_after_the_cut_takes_it_back(make_run: RunFactory) -> None:
    run = guarded(make_run, 0.9, nan)
    run.train(7)
    assert isinstance(run.compressor.history[-1], RolledBack)
    state = run.save()["compressor"]
    other = guarded(make_run)
    other.compressor.load_state_dict(state)
    assert other.compressor.history[-1].after != other.compressor.history[-1].after
    assert other.compressor.state_dict()["stopped"] is True


def test_a_cut_that_changed_nothing_is_not_probed(make_run: RunFactory) -> None:
    guard = Guard(Readings(0.9), allowed=0.1, higher_is_better=True, probe_after=3)
    run = make_run(schedule=At((4,)), criteria=[FixedOrder(12)], guard=guard)
    run.train(4)
    assert not run.compressor.pending_probe
    run.train(5)
    assert not isinstance(run.compressor.history[-1], (RolledBack, Skipped))


def test_the_metrics_forward_passes_are_not_captured(make_run: RunFactory, compare: Compare) -> None:
    def build(forward: bool) -> Any:
        here: dict[str, Any] = {}

        def metric() -> float:
            if forward:
                here["run"].model(100 * torch.randn(4, 30, 2))
            return 1.0

        guard = Guard(metric, allowed=0.1, higher_is_better=True, probe_after=4)
        weighted = CompressionSettings(observability=GramianSource.WHITE)  # passes without a graph count then
        values = {"schedule": At((4, 9)), "criteria": FIXED, "guard": guard, "settings": weighted}
        here["run"] = make_run(**values)
        return here["run"]

    saved = []
    for forward in (True, False):
        run = build(forward)
        run.train(12)
        saved.append(run.save())
    assert compare(*saved) == []


def test_a_metric_that_raises_leaves_the_run_usable(make_run: RunFactory) -> None:
    calls = []

    def metric() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        return 1.0

    guard = Guard(metric, allowed=0.1, higher_is_better=True, probe_after=2)
    run = make_run(schedule=At((4,)), criteria=[FixedOrder(8)], guard=guard)
    with pytest.raises(OSError, match="the disk is gone"):
        run.train(6)
    assert run.compressor.pending_probe
    run.train(1)
    assert not run.compressor.pending_probe
    assert run.orders() == [8, 8]


def test_captures_before_a_rollback_do_not_count_for_the_next_cut(make_run: RunFactory, compare: Compare) -> None:
    later = make_run(schedule=At((9,)), criteria=[FixedOrder(5)])
    later.train(12)
    wanted = later.save() | {"compressor": None}
    run = guarded(make_run, 0.9, 0.1, 0.9, stop_after_rollback=False, probe_after=4)
    run.train(4 + 12)
    assert [(type(e).__name__, e.step) for e in run.compressor.history] == [("RolledBack", 8), ("Cut", 9)]
    assert compare(run.save() | {"compressor": None}, wanted) == []


def test_a_metric_without_a_number_is_an_error_and_no_skipped_cut(make_run: RunFactory) -> None:
    guard = Guard(lambda: None, allowed=0.1, higher_is_better=True, probe_after=2)  # type: ignore[arg-type,return-value]
    run = make_run(schedule=At((2,)), criteria=FIXED, guard=guard)
    with pytest.raises(ConfigError, match="metric returned NoneType"):
        run.train(2)
    assert run.orders() == [12, 12]
