"""Schedules are pure functions whose counting, next cut and list of cuts agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compressm.errors import ConfigError
from compressm.training.schedule import At, Every, Schedule, WarmupThenEvery, Window, schedule_from_dict

HORIZON = 90


def windows() -> st.SearchStrategy[Window]:
    return st.tuples(st.integers(0, 30), st.integers(1, 50), st.integers(1, 50)).map(
        lambda t: Window(t[0], t[0] + max(t[1], t[2]), t[2])
    )


def schedules() -> st.SearchStrategy[Schedule]:
    stop = st.none() | st.integers(40, 100)
    return st.one_of(
        windows(),
        st.builds(Every, st.integers(1, 20), st.integers(0, 20), stop),
        st.builds(WarmupThenEvery, st.integers(1, 40), st.integers(1, 20), stop),
        st.lists(st.integers(1, 80), min_size=1, unique=True).map(lambda s: At(tuple(sorted(s)))),
    )


def cuts(schedule: Schedule, horizon: int = HORIZON) -> list[int]:
    return [s for s in range(1, horizon) if schedule.is_cut(s)]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Window(0, 40, 4), [10, 20, 30, 40]),
        (Window(5, 12, 3), [7, 9, 12]),
        (Window(0, 4, 4), [1, 2, 3, 4]),
        (Window(10, 20, 1), [20]),
        (Every(20), [20, 40, 60, 80]),
        (Every(20, start=5, stop=45), [25, 45]),
        (At((3, 4, 50)), [3, 4, 50]),
        (WarmupThenEvery(30, 20), [30, 50, 70]),
        (WarmupThenEvery(30, 20, stop=69), [30, 50]),
    ],
)
def test_the_cuts_are_where_they_should_be(schedule: Schedule, wanted: list[int]) -> None:
    assert cuts(schedule) == wanted


@given(schedules())
def test_count_next_cut_and_is_cut_agree(schedule: Schedule) -> None:
    steps = cuts(schedule)
    for s in range(HORIZON - 1):
        assert schedule.count(s) == sum(c <= s for c in steps)
        later = [c for c in steps if c > s]
        if later:
            assert schedule.next_cut(s) == later[0]
        else:
            assert schedule.next_cut(s) is None or schedule.next_cut(s) >= HORIZON
    assert not schedule.is_cut(0)
    assert not schedule.is_cut(-3)


@given(schedules())
@example(Window(0, 3, 2))
@example(Window(0, 11, 4))
def test_the_gap_is_the_smallest_between_two_cuts(schedule: Schedule) -> None:
    steps = cuts(schedule, 400)
    assert schedule.min_gap() == min((b - a for a, b in pairwise(steps)), default=None)


@given(schedules())
def test_json_round_trip(schedule: Schedule) -> None:
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@given(windows())
def test_a_window_makes_its_cuts_the_last_at_its_end(window: Window) -> None:
    steps = cuts(window)
    assert len(steps) == window.cuts
    assert steps[-1] == window.end
    gaps = {b - a for a, b in pairwise([window.start, *steps])}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(0, 3, 4),
        lambda: Window(-1, 10, 2),
        lambda: Window(0, 10, 0),
        lambda: Window(20, 10, 1),
        lambda: Every(0),
        lambda: Every(10, stop=5),
        lambda: Every(2.5),  # type: ignore[arg-type]
        lambda: Every(True),
        lambda: At(()),
        lambda: At((0, 3)),
        lambda: At((5, 5)),
        lambda: At((5, 3)),
        lambda: WarmupThenEvery(0, 5),
        lambda: WarmupThenEvery(10, 5, stop=9),
    ],
)
def test_impossible_schedules_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "often"}, "known are"),
        ({}, "known are"),
        ({"kind": "every", "interval": 3, "intervals": 4}, "intervals"),
        ({"kind": "every"}, "interval"),
        ({"kind": "at", "steps": "abc"}, "steps"),
        ({"kind": "at", "steps": 3}, "steps"),
    ],
)
def test_damaged_descriptions_are_refused(data: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule_from_dict(data)
