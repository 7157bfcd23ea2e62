"""Which cut is made when and how; the presets; what differs between two fingerprints."""

from __future__ import annotations

import pytest

from compressm.errors import ConfigError
from compressm.reduction.criteria import FixedOrder, HankelEnergy
from compressm.reduction.result import GramianSource
from compressm.settings import Balancing, CompressionSettings
from compressm.surgery.policy import StatePolicy
from compressm.training.guard import Guard
from compressm.training.plan import CutPlan, differences
from compressm.training.presets import PRESETS, preset
from compressm.training.schedule import At, Every, Schedule, Window


def plan(schedule: Schedule, **values: object) -> CutPlan:
    return CutPlan(schedule, CompressionSettings(), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "wanted"), [(0, []), (1, [4, 9]), (2, [3, 4, 8, 9]), (6, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
)
def test_the_steps_before_a_cut_are_captured(steps: int, wanted: list[int]) -> None:
    cuts = plan(At((5, 10)), calibration_steps=steps)
    assert [s for s in range(20) if cuts.captures_after(s)] == wanted


def test_each_cut_has_its_criterion_and_the_last_stays() -> None:
    cuts = plan(Every(5), criteria=(FixedOrder(9), FixedOrder(4)))
    assert [cuts.settings_at(s).criterion for s in (5, 10, 15, 20)] == [FixedOrder(9), *[FixedOrder(4)] * 3]
    assert plan(Every(5)).settings_at(5) == CompressionSettings()


def test_a_guard_has_judged_before_the_next_cut(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(float, allowed=0.1, higher_is_better=True, probe_after=10)
    assert plan(At((5, 15)), guard=guard).probe_after == plan(At((5,)), guard=guard).probe_after == 10
    assert not caplog.records
    assert plan(At((5, 14, 30)), guard=guard).probe_after == 9
    assert "looks 9 steps after a cut instead of 10" in caplog.text


def test_presets() -> None:
    paper, default = PRESETS["paper"].settings, PRESETS["default"].settings
    white = GramianSource.WHITE
    assert (paper.balancing, paper.controllability, paper.observability) == (Balancing.COMPLEX, white, white)
    assert (paper.minimum_gain, paper.optimizer_policy) == (0.05, StatePolicy.SLICE)
    assert default.balancing is Balancing.REAL
    assert default.controllability is GramianSource.DATA
    assert PRESETS["paper"].schedule(4000) == Window(0, 400, 4)
    assert PRESETS["default"].schedule(4000) == Window(0, 1600, 4)
    assert PRESETS["paper"].discarding(0.1).criterion == HankelEnergy(0.1)
    assert PRESETS["paper"].discarding(0.1).balancing is Balancing.COMPLEX
    with pytest.raises(ConfigError, match="default"):
        preset("nothing")
    with pytest.raises(ConfigError, match="39 steps is too short"):
        PRESETS["paper"].schedule(39)
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["paper"]  # type: ignore[index]


def test_differences_name_the_setting() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b was 1 and is 2 now"]
    assert differences({"a": None}, {"a": {"b": 2}}) == ["a was None and is {'b': 2} now"]
    assert differences({"a": 1}, {"b": 1}) == ["a was 1 and is None now", "b was None and is 1 now"]
