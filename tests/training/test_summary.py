"""What a run took: counts are exact, times are those of a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compressm.errors import ConfigError
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Guard, OnError
from compressm.training import clock as clock_module
from compressm.training.clock import SAMPLES, StepClock, Work
from compressm.training.history import History
from compressm.training.summary import PeakMemory, summarise

RunFactory = Callable[..., Any]


class Time:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    hand = Time()
    monkeypatch.setattr(clock_module, "time", hand)
    return hand


def make_steps(clock: StepClock, time: Time, seconds: list[float], captured: bool = False) -> None:
    for value in seconds:
        time.now += value
        clock.enter(captured=captured)
        clock.leave()


def test_the_saving_is_that_of_the_medians_less_the_costs(time: Time) -> None:
    clock = StepClock({"a": 8})
    clock.leave()
    make_steps(clock, time, [4.0] * 9 + [400.0])  # one slow step moves no median
    make_steps(clock, time, [5.0, 5.0], captured=True)
    with clock.timing(Work.CUT):
        time.now += 3.0
    clock.resize({"a": 4})
    clock.leave()
    make_steps(clock, time, [1.0] * 20)
    with clock.timing(Work.GUARD):
        time.now += 0.5
    clock.resize({"a": 3})
    clock.leave()
    make_steps(clock, time, [1.0] * 4)  # too few: they count as uncut ones
    summary = summarise(clock, History({"a": 8}), PeakMemory())
    assert [(s.orders, s.steps, s.measured, s.seconds_per_step) for s in summary.sizes] == [
        ({"a": 8}, 12, 10, 4.0),
        ({"a": 4}, 20, 20, 1.0),
        ({"a": 3}, 4, 4, None),
    ]
    assert (summary.cut_seconds, summary.guard_seconds, summary.capture_seconds) == (3.0, 0.5, 2.0)
    assert summary.steps == 36
    assert summary.uncut_seconds == 36 * 4.0
    assert summary.training_seconds == 12 * 4.0 + 20 * 1.0 + 4 * 4.0 + 5.5
    assert summary.saved_seconds == 36 * 4.0 - 89.5
    assert summary.saved_fraction == pytest.approx(summary.saved_seconds / 144.0)


def test_nothing_is_claimed_where_the_uncut_size_was_not_measured(time: Time) -> None:
    clock = StepClock({"a": 8})
    clock.leave()
    make_steps(clock, time, [4.0] * 4)
    clock.resize({"a": 4})
    make_steps(clock, time, [1.0] * 50)
    summary = summarise(clock, History({"a": 8}), PeakMemory())
    assert summary.uncut_seconds is None and summary.training_seconds is None
    assert summary.saved_seconds is None and summary.saved_fraction is None
    assert "saving" not in str(summary)


def test_the_median_of_a_long_run_needs_bounded_memory(time: Time) -> None:
    clock = StepClock({"a": 8})
    clock.leave()
    seconds = [float(1 + (7919 * k) % 10_007) for k in range(10_007)]  # 1 .. 10,007 in a scrambled order
    make_steps(clock, time, seconds)
    (stretch,) = clock.stretches
    assert stretch.measured == len(seconds) and SAMPLES <= len(stretch.times) < 2 * SAMPLES
    assert stretch.median == pytest.approx(5004, rel=0.1)


def test_a_run_counts_its_steps_and_its_costs(make_run: RunFactory) -> None:
    run = make_run(schedule=At((10, 22)), criteria=(FixedOrder(8), FixedOrder(5)))
    run.train(30)
    summary = run.compressor.summary()
    sizes = [(set(size.orders.values()), size.steps) for size in summary.sizes]
    assert sizes == [({12}, 10), ({8}, 12), ({5}, 8)]
    # the first step has no call before it, and two steps before each cut are captured
    assert [size.measured for size in summary.sizes] == [7, 10, 8]
    assert (summary.cuts, summary.rolled_back, summary.skipped, summary.steps) == (2, 0, 0, 30)
    assert summary.cut_seconds > 0 and summary.guard_seconds == 0
    assert summary.saved_seconds is not None
    assert summary.peak_memory is not None and summary.peak_memory > 50 * 2**20
    assert summary.peak_device_memory is None
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["sizes"][1]["steps"] == 12
    run.compressor.close()
    assert run.compressor.summary().steps == 30


def test_steps_that_a_rollback_takes_back_were_made(make_run: RunFactory) -> None:
    guard = Guard(lambda: 0.0, allowed=0.0, higher_is_better=True, probe_after=4)
    run = make_run(schedule=At((8,)), criteria=(FixedOrder(6),), guard=guard)
    values = iter([1.0, 0.0])
    object.__setattr__(guard, "metric", lambda: next(values))
    run.train(20)
    summary = run.compressor.summary()
    assert run.compressor.steps == 16 and summary.steps == 20
    assert [(set(s.orders.values()), s.steps) for s in summary.sizes] == [({12}, 16), ({6}, 4)]
    assert (summary.cuts, summary.rolled_back) == (0, 1)
    assert summary.guard_seconds > 0


def test_validations_are_not_in_the_step_times(make_run: RunFactory) -> None:
    run = make_run(schedule=At((50,)))
    for _ in range(10):
        run.train(1)
        with run.compressor.not_capturing():
            pass
    assert [(s.steps, s.measured) for s in run.compressor.summary().sizes] == [(10, 0)]


def test_attempts_that_fail_count_as_skipped(make_run: RunFactory) -> None:
    run = make_run(schedule=At((3,)), on_error=OnError.SKIP)
    run.train(2)
    layer = next(m for m in run.model.modules() if hasattr(m, "nu_log"))
    layer.nu_log.data.fill_(float("nan"))
    run.train(1)
    assert run.compressor.summary().skipped == 1


def test_a_resumed_run_goes_on_counting(make_run: RunFactory) -> None:
    arguments: dict[str, Any] = {"schedule": At((10,)), "criteria": (FixedOrder(6),)}
    run = make_run(**arguments)
    run.train(15)
    before = run.compressor.summary()
    again = make_run(**arguments)
    again.load(run.save())
    assert again.compressor.summary().to_dict() | {"peak_memory": 0} == before.to_dict() | {"peak_memory": 0}
    again.train(5)
    assert [s.steps for s in again.compressor.summary().sizes] == [10, 10]
    old = run.save()
    del old["compressor"]["seconds"]  # as saved before times were
    third = make_run(**arguments)
    third.load(old)
    third.train(5)
    assert [(set(s.orders.values()), s.steps) for s in third.compressor.summary().sizes] == [({6}, 5)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.clear(),
        lambda s: s.update(peak=[1]),
        lambda s: s.update(peak=["x", None]),
        lambda s: s["clock"].pop("spent"),
        lambda s: s["clock"]["spent"].update(cut=float("nan")),
        lambda s: s["clock"]["stretches"][0].update(stride=0),
        lambda s: s["clock"]["stretches"][0].update(steps=float("inf")),
        lambda s: s["clock"]["stretches"][0].update(times=[-1.0]),
        lambda s: s["clock"].update(stretches=3),
    ],
)
def test_damaged_times_are_refused(make_run: RunFactory, damage: Callable[[dict[str, Any]], Any]) -> None:
    run = make_run(schedule=At((10,)))
    run.train(3)
    state = run.save()["compressor"]
    damage(state["seconds"])
    with pytest.raises(ConfigError, match="times are damaged"):
        run.compressor.load_state_dict(state)
    assert run.compressor.steps == 3


def test_peaks_are_those_of_all_processes() -> None:
    assert PeakMemory(5, None).or_more(PeakMemory(3, 4)) == PeakMemory(5, 4)
    assert PeakMemory.now(torch.device("cpu")).device is None
