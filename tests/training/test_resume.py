"""Saved at any step and loaded into a new run, training goes on bit for bit as if uninterrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressm.checkpoint import load_checkpoint, save_checkpoint
from compressm.errors import ConfigError
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Every, Guard

RunFactory = Callable[..., Any]
Compare = Callable[..., list[str]]
STEPS = 18  # a cut taken back costs the 3 steps of its probe


def arguments(after: float = 1.0) -> dict[str, Any]:
    """Two cuts with a guard, whose metric is 1 before each cut and `after` when it is probed."""
    calls: dict[str, Any] = {}

    def metric() -> float:
        return after if calls["run"].compressor.pending_probe else 1.0

    guard = Guard(metric, allowed=0.1, higher_is_better=True, probe_after=3, stop_after_rollback=False)
    return {"schedule": At((4, 9)), "criteria": (FixedOrder(8), FixedOrder(5)), "guard": guard, "calls": calls}


def build(make_run: RunFactory, after: float = 1.0) -> Any:
    values = arguments(after)
    calls = values.pop("calls")
    calls["run"] = run = make_run(**values)
    return run


@pytest.mark.parametrize("after", [1.0, 0.0], ids=["cuts stand", "cuts are taken back"])
def test_resuming_at_every_step_equals_going_on(make_run: RunFactory, compare: Compare, after: float) -> None:
    whole = build(make_run, after)
    saved = []
    for _ in range(STEPS):
        saved.append(whole.save())
        whole.train(1)
    wanted = whole.save()
    assert sum(s["compressor"]["probe"] is not None for s in saved) > 3
    for step, state in enumerate(saved):
        run = build(make_run, after)
        run.load(state)
        assert compare(run.save(), state) == [], step
        run.train(STEPS - step)
        assert compare(run.save(), wanted) == [], step
    assert whole.orders() == ([5, 5] if after == 1.0 else [12, 12])


def test_resuming_from_a_checkpoint_at_every_step(make_run: RunFactory, compare: Compare, tmp_path: Path) -> None:
    whole = build(make_run)
    for step in range(STEPS):
        save_checkpoint(
            tmp_path / str(step),
            whole.model,
            optimizer=whole.optimizer,
            scheduler=whole.scheduler,
            compressor=whole.compressor,
        )
        whole.train(1)
    wanted = whole.save()
    for step in range(STEPS):
        run = build(make_run)
        load_checkpoint(
            tmp_path / str(step),
            run.model,
            optimizer=run.optimizer,
            scheduler=run.scheduler,
            compressor=run.compressor,
        )
        run.train(STEPS - step)
        assert compare(run.save(), wanted) == [], step


def tensors_out(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape)}
    if isinstance(value, dict):
        assert all(isinstance(k, (str, int)) for k in value)
        return {k: tensors_out(v) for k, v in value.items()}
    return [tensors_out(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_all_but_the_tensors_is_strict_json(make_run: RunFactory) -> None:
    run = build(make_run)
    for _ in range(7):
        run.train(1)
        json.dumps(tensors_out(run.compressor.state_dict()), allow_nan=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedule": At((4, 10))}, r"schedule\.steps was \[4, 9\] and is \[4, 10\]"),
        ({"schedule": Every(5)}, r"schedule\.kind was 'at' and is 'every'"),
        ({"guard": None}, "guard was"),
        ({"calibration_steps": 3}, "calibration_steps was 2 and is 3"),
        ({"criteria": (FixedOrder(7),)}, "criteria was"),
        ({"settings": "paper"}, r"settings\.balancing was 'real' and is 'complex'"),
    ],
)
def test_other_settings_are_named(make_run: RunFactory, changed: dict[str, Any], said: str) -> None:
    run = build(make_run)
    run.train(5)
    state = run.save()
    values = arguments()
    values.pop("calls")
    other = make_run(**(values | changed))
    with pytest.raises(ConfigError, match=said):
        other.compressor.load_state_dict(state["compressor"])
    assert other.compressor.steps == 0


def test_damaged_and_foreign_states_are_refused(make_run: RunFactory) -> None:
    run = build(make_run)
    state = run.compressor.state_dict()
    for damaged, said in [
        ({}, "version None"),
        (state | {"version": 99}, "version 99"),
        ({k: v for k, v in state.items() if k != "steps"}, "steps"),
        (state | {"history": {"initial": {"other": 3}, "events": []}}, "other"),
        (state | {"history": {"initial": 3}}, "history"),
        (state | {"history": state["history"] | {"events": [{"kind": "cut"}]}}, "damaged"),
        (state | {"history": state["history"] | {"events": [{"kind": "party"}]}}, "party"),
    ]:
        with pytest.raises(ConfigError, match=said):
            run.compressor.load_state_dict(damaged)
    assert torch.is_grad_enabled()
