"""The guard's judgement, and that measuring leaves no trace."""

from __future__ import annotations

import random
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from compressm.errors import ConfigError
from compressm.training.evaluation import measure, undisturbed
from compressm.training.guard import Guard


def guard(allowed: float = 0.1, higher: bool = True) -> Guard:
    return Guard(lambda: 0.0, allowed=allowed, higher_is_better=higher, probe_after=3)


@pytest.mark.parametrize(
    ("higher", "before", "after", "refused"),
    [
        (True, 0.8, 0.75, False),
        (True, 0.8, 0.6, True),
        (True, 0.8, 0.95, False),
        (False, 1.0, 1.05, False),
        (False, 1.0, 1.2, True),
        (False, 1.0, 0.1, False),
        (True, 0.8, nan, True),
        (False, 0.8, nan, True),
        (True, nan, 0.1, False),
        (True, nan, nan, True),
        (False, 1.0, inf, True),
        (False, inf, inf, False),
        (True, 1.0, -inf, True),
        (True, -inf, -inf, False),
        (False, inf, 3.0, False),
    ],
)
def test_the_judgement(higher: bool, before: float, after: float, refused: bool) -> None:
    assert guard(higher=higher).refuses(before, after) is refused


def test_exactly_the_allowed_change_is_allowed() -> None:
    assert not guard(allowed=0.25).refuses(1.0, 0.75)
    assert guard(allowed=0.0).refuses(1.0, 1.0 - 1e-12)


@pytest.mark.parametrize(
    "values",
    [
        {"allowed": -0.1},
        {"allowed": nan},
        {"allowed": inf},
        {"probe_after": 0},
        {"probe_after": 1.5},
        {"metric": 3},
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    usual: dict[str, object] = {"metric": float, "allowed": 0.1, "higher_is_better": True, "probe_after": 2}
    with pytest.raises(ConfigError):
        Guard(**(usual | values))  # type: ignore[arg-type]


def mixed_modes() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))
    model[2].eval()
    model[2][1].train()
    return model


def test_measuring_leaves_modes_random_states_and_buffers_alone() -> None:
    model = mixed_modes()
    modes = [m.training for m in model.modules()]
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    seen: list[bool] = []

    def metric() -> torch.Tensor:
        seen.extend(m.training for m in model.modules())
        model.train()
        model.eval()
        random.random()
        np.random.rand(3)
        out = model(torch.randn(7, 4))
        assert not out.requires_grad
        return out.mean()

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    wanted = (torch.rand(2), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    value = measure(metric, model)
    assert isinstance(value, float)
    found = (torch.rand(2), random.random(), np.random.rand())
    assert torch.equal(wanted[0], found[0])
    assert wanted[1:] == found[1:]
    assert not any(seen)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(buffers[k], v) for k, v in model.state_dict().items())


def test_a_metric_that_raises_leaves_no_trace_either() -> None:
    model = mixed_modes()
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()

    def interrupted() -> None:
        with undisturbed(model):
            torch.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("value", [None, "good", torch.zeros(3), [1.0]])
def test_a_metric_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="metric returned"):
        measure(lambda: value, nn.Linear(1, 1))  # type: ignore[arg-type,return-value]
