"""The mode of PyTorch's compiler, a global of the process, is always as it was before a capture."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from compressm.adapters.calibration import Calibration
from compressm.errors import SurgeryError
from compressm.layers import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, InTrainingCompressor, OnError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Compiles:
    """Whether something new is compiled when it is first run, which is what the mode decides."""

    def __call__(self) -> bool:
        graphs: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
        return bool(graphs)


compiles = Compiles()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.compiler.reset()
    gc.collect()
    assert compiles(), "another test left the compiler in another mode"
    yield
    gc.collect()
    assert compiles()
    torch.compiler.reset()


def compressor(**options: Any) -> InTrainingCompressor:
    """One that captures from the beginning."""
    model = nn.Sequential(LRU(width=2, order=6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = {"schedule": At((2,)), "criteria": [FixedOrder(3)]} | options
    return InTrainingCompressor(model, optimizer, **values)


def test_nothing_is_compiled_while_passes_are_captured() -> None:
    made = compressor()
    assert not compiles()
    with made.not_capturing():
        assert compiles()
    assert not compiles()
    made.step()
    assert not compiles()
    made.step()
    assert compiles()


def close(made: InTrainingCompressor) -> None:
    made.close()


def finish(made: InTrainingCompressor) -> None:
    made.finish()


def leave(made: InTrainingCompressor) -> None:
    with pytest.raises(ZeroDivisionError), made:
        raise ZeroDivisionError


def drop(made: InTrainingCompressor) -> None:
    del made


@pytest.mark.parametrize("end", [close, finish, leave])
def test_the_end_of_a_compressor_ends_it(end: Callable[[InTrainingCompressor], None]) -> None:
    made = compressor()
    assert not compiles()
    end(made)
    assert compiles()


def test_a_compressor_that_is_dropped_ends_it_and_takes_its_hooks_along() -> None:
    made = compressor()
    model = made.model
    assert model[0]._forward_hooks
    del made
    gc.collect()
    assert compiles()
    assert not model[0]._forward_hooks


def test_one_in_a_cycle_of_garbage() -> None:
    made = compressor()
    cycle: list[Any] = [made]
    cycle.append(cycle)
    del made, cycle
    gc.collect()
    assert compiles()


def test_an_exception_in_a_loop() -> None:
    def loop() -> None:
        made = compressor()
        made.model(torch.randn(1, 5, 2)).sum().backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        loop()
    assert not compiles()  # the traceback holds the loop, whose compressor may go on
    del caught
    gc.collect()
    assert compiles()


@pytest.mark.parametrize("on_error", OnError)
def test_a_cut_that_fails(on_error: OnError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SurgeryError("no")

    monkeypatch.setattr("compressm.training.trained.compress_", fail)
    made = compressor(on_error=on_error)
    made.step()
    if on_error is OnError.RAISE:
        with pytest.raises(SurgeryError):
            made.step()
    else:
        made.step()
    assert compiles()


def test_an_error_on_the_way_into_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compressor(schedule=At((5,)))
    assert compiles()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LRU, "register_forward_hook", fail)
    made.step()
    made.step()
    with pytest.raises(KeyboardInterrupt):
        made.step()
    assert compiles()


@pytest.mark.parametrize("first", [0, 1])
def test_two_at_once_in_any_order(first: int) -> None:
    pair = [compressor(), compressor()]
    pair[first].close()
    assert not compiles()
    pair[1 - first].close()
    assert compiles()


def test_calibrations_inside_each_other() -> None:
    model = nn.Sequential(LRU(width=2, order=6))
    with Calibration(model) as outer:
        with Calibration(model):
            assert not compiles()
        outer.stop()
        outer.stop()
        assert compiles()
        outer.start()
        outer.start()
        assert not compiles()
    assert compiles()


@pytest.mark.parametrize("stance", ["default", "eager_on_recompile"])
@pytest.mark.parametrize("crossing", ["inside", "begins inside", "ends inside"])
def test_a_mode_that_the_user_sets_is_put_back(stance: str, crossing: str) -> None:
    wanted = stance == "default"
    if crossing == "inside":
        with torch.compiler.set_stance(stance):
            made = compressor()
            assert not compiles()
            made.close()
            assert compiles() is wanted
    elif crossing == "begins inside":
        with torch.compiler.set_stance(stance):
            made = compressor()
        assert compiles()
        made.close()
    else:
        made = compressor()
        with torch.compiler.set_stance(stance):
            assert compiles() is wanted
            made.close()
            assert compiles() is wanted
    assert compiles()


def test_many_captures_one_after_the_other() -> None:
    for _ in range(10):
        with compressor() as made:
            made.step()
            made.step()
    assert compiles()


def test_a_hook_of_a_copy_captures_nothing() -> None:
    from torch.optim.swa_utils import AveragedModel

    made = compressor()
    average = AveragedModel(made.model)
    average(torch.randn(1, 5, 2)).sum().backward()
    assert made.state_dict()["calibration"] == {}
    made.model(torch.randn(1, 5, 2)).sum().backward()
    assert made.state_dict()["calibration"]["0"]["inputs"]
