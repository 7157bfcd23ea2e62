"""The batch grows with the memory that a cut gives back, and no further."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from compressm.errors import ConfigError
from compressm.training import GrowingBatch, RateRule

INPUTS, FIRST = 6, 8


class Hidden(nn.Module):
    """tanh(x A) C, of which autograd keeps x and tanh(x A), 4 bytes a number."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(INPUTS, order))
        self.C = nn.Parameter(torch.randn(order, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.A) @ self.C

    def resize(self, order: int) -> None:
        with torch.no_grad():
            self.A.set_(torch.randn(INPUTS, order))
            self.C.set_(torch.randn(order, 1))
        self.zero_grad()


class Run:
    """A plain loop."""

    def __init__(self, order: int = 64, **options: object) -> None:
        self.model = Hidden(order)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.growing = GrowingBatch(self.model, self.optimizer, **{"size": FIRST, "maximum": 1000, **options})
        self.sizes: list[int] = []

    def train(self, steps: int) -> list[int]:
        """Make steps; the sizes of their batches."""
        sizes = []
        for _ in range(steps):
            sizes.append(self.growing.size)
            x = torch.randn(self.growing.size, INPUTS)
            with self.growing.measured():
                loss = self.model(x).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return sizes

    def cut(self, order: int) -> None:
        self.model.resize(order)
        self.optimizer.state.clear()  # with momentum made anew in the next step, h is that of a step without
        self.train_state()

    def train_state(self) -> None:
        for p in self.model.parameters():
            self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def held(order: int) -> int:
    """Parameters, gradients and momentum."""
    return 3 * 4 * order * (INPUTS + 1)


def saved(order: int, size: int) -> int:
    return 4 * size * (INPUTS + order)


def test_the_size_is_what_fits_into_the_first_steps_memory() -> None:
    run = Run()
    budget = held(64) + saved(64, FIRST)
    assert run.train(4) == [FIRST] * 4
    run.cut(20)
    expected = FIRST * (budget - held(20)) // saved(20, FIRST)
    assert run.train(3) == [FIRST, expected, expected]  # the step after a cut is measured, the next is larger
    assert held(20) + saved(20, expected) <= budget < held(20) + saved(20, expected + 1)
    run.cut(5)
    again = expected * (budget - held(5)) // saved(5, expected)
    assert run.train(3) == [expected, again, again]
    assert held(5) + saved(5, again) <= budget


def test_a_cut_that_is_taken_back_takes_its_size_along() -> None:
    run = Run()
    run.train(3)
    run.cut(10)
    grown = run.train(2)[-1]
    run.cut(64)
    assert run.train(2) == [FIRST, FIRST]
    run.cut(30)
    assert run.train(1) == [FIRST]  # not that of order 10, which a model of order 30 may have no memory for
    run.cut(10)
    assert run.train(1) == [grown] and grown > FIRST


def test_bounds_and_learning_rates() -> None:
    for rule, factor in ((RateRule.NONE, 1.0), (RateRule.LINEAR, 2.5), (RateRule.SQRT, 2.5**0.5)):
        run = Run(maximum=20, rate=rule)
        assert run.train(2) == [FIRST] * 2
        assert run.growing.rate_factor == 1.0
        run.cut(3)
        assert run.train(2) == [FIRST, 20]
        assert run.growing.rate_factor == pytest.approx(factor, abs=0)
    run = Run(order=4)
    run.train(2)
    run.cut(90)  # it grew: never below the first size
    assert run.train(2) == [FIRST] * 2


def test_all_processes_take_one_number() -> None:
    asked: list[float] = []

    def agreed(value: float) -> float:
        asked.append(value)
        return 11.0

    run = Run(agreed=agreed)
    run.train(2)
    assert len(asked) == 1
    run.cut(10)
    assert run.train(2) == [11, 11]
    assert len(asked) == 2


def test_a_run_goes_on_from_its_state() -> None:
    for at in (0, 1, 2, 3):  # before the first measurement too
        whole, again = Run(), Run()
        whole.train(at)
        state = json.loads(json.dumps(whole.growing.state_dict()))
        again.growing.load_state_dict(state)
        again.train_state()
        for run in (whole, again):
            run.train(4 - at)
            run.cut(9)
        assert whole.train(3) == again.train(3)
        assert whole.growing.state_dict() == again.growing.state_dict()


def test_what_does_not_fit_is_refused() -> None:
    for options, said in (
        ({"size": 0}, "size is 0"),
        ({"maximum": 4}, "maximum is 4; wanted at least the first size, 8"),
        ({"rate": "linear"}, "rate is 'linear'"),
    ):
        with pytest.raises(ConfigError, match=said):
            Run(**options)
    growing = Run().growing
    good = growing.state_dict()
    for damage in (
        {"first": 9},
        {"steps": -1},
        {"steps": "3"},
        {"budget": 0},
        {"sizes": None},
        {"sizes": [[1, 2, 3]]},
        {"sizes": [[1, 0]]},
        {"sizes": [5]},
    ):
        with pytest.raises(ConfigError):
            growing.load_state_dict({**good, **damage})
        assert growing.state_dict() == good
