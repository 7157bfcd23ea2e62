"""NaN, infinities and absurd sizes in weights, gradients, optimizer state, inputs and metrics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressm import (
    CompressionSettings,
    CompressmError,
    FixedOrder,
    Guard,
    InTrainingCompressor,
    analyze,
    compress_,
    load_checkpoint,
    save_checkpoint,
)
from compressm.errors import ConfigError
from compressm.training import At, OnError, Skipped

NewRun = Callable[..., Any]
NAN, INF = float("nan"), float("inf")
FOUR = CompressionSettings(criterion=FixedOrder(4))


def finite(run: Any) -> bool:
    return all(bool(torch.isfinite(p).all()) for n, p in run.model.named_parameters() if ".ssm." in n)


def compressor_of(run: Any, **arguments: Any) -> InTrainingCompressor:
    return InTrainingCompressor(run.model, run.optimizer, **{"schedule": At((3, 6)), "settings": FOUR, **arguments})


def train(run: Any, compressor: InTrainingCompressor, steps: int) -> None:
    for _ in range(steps):
        run.step()
        compressor.step()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_anywhere_in_what_is_cut(data: st.DataObject, new_run: NewRun) -> None:
    run = new_run(layer=data.draw(st.sampled_from(["lru", "dense", "s4d", "s5", "dss"])), blocks=1)
    run.step()
    where = data.draw(st.sampled_from(["weight", "gradient", "moment"]))
    parameter = data.draw(st.sampled_from([p for n, p in run.model.named_parameters() if ".ssm." in n]))
    value = data.draw(st.sampled_from([NAN, INF, -INF, 3e38, -3e38, 1e20, -100.0, 0.0, 40.0]))
    target = {"weight": parameter, "gradient": parameter.grad, "moment": run.optimizer.state[parameter]["exp_avg"]}
    with torch.no_grad():
        target[where].view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] = value
    before = run.fingerprint()
    chosen = CompressionSettings(criterion=FixedOrder(data.draw(st.integers(1, 7))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compress_(run.model, chosen, optimizer=run.optimizer)
        except CompressmError:
            assert run.fingerprint() == before
            return
    assert finite(run)


@pytest.mark.parametrize("value", [NAN, INF])
class TestInTraining:
    def test_weights(self, new_run: NewRun, value: float) -> None:
        run = new_run()
        compressor = compressor_of(run)
        train(run, compressor, 2)
        run.step()
        with torch.no_grad():
            next(p for n, p in run.model.named_parameters() if n.endswith("ssm.C_re"))[0, 0] = value
        before = run.fingerprint()
        (event,) = compressor.step()
        assert isinstance(event, Skipped) and "blocks.0.ssm" in event.reason and "NaN or infinite" in event.reason
        assert run.fingerprint() == before

    def test_weights_where_errors_are_wanted(self, new_run: NewRun, value: float) -> None:
        run = new_run()
        compressor = compressor_of(run, schedule=At((1,)), on_error=OnError.RAISE)
        run.step()
        with torch.no_grad():
            next(p for n, p in run.model.named_parameters() if n.endswith("ssm.C_re"))[0, 0] = value
        before = run.fingerprint()
        for call in (compressor.step, lambda: compress_(run.model, FOUR), lambda: analyze(run.model, FOUR)):
            with pytest.raises(CompressmError, match=r"blocks\.0\.ssm: .*NaN or infinite"):
                call()
        assert run.fingerprint() == before

    def test_captured_gradients_are_left_out_and_the_report_says_what_was_used(
        self, new_run: NewRun, value: float
    ) -> None:
        run = new_run()
        compressor = compressor_of(run)
        for step in range(3):
            output = run.model(torch.randn(3, 6, 2))
            (output.sum() * (value if step else 1.0)).backward()  # not finite in all captured steps
            run.optimizer.zero_grad()  # as a gradient scaler skips such a step
            compressor.step()
        (cut,) = compressor.history.cuts
        assert finite(run) and cut.report.changed
        for layer in cut.report.layers:
            assert (layer.controllability, layer.observability) == ("data", "white")
            assert any("no gradients were captured" in text for text in layer.fallbacks)

    def test_captured_inputs_are_left_out(self, new_run: NewRun, value: float) -> None:
        run = new_run()
        compressor = compressor_of(run)
        for step in range(3):
            batch = torch.randn(3, 6, 2)
            batch[0, 0, 0] = value if step == 1 else 0.0
            run.model(batch).square().mean().backward()
            run.optimizer.zero_grad()
            compressor.step()
        (cut,) = compressor.history.cuts
        assert finite(run) and cut.report.changed
        assert {layer.controllability for layer in cut.report.layers} == {"data"}

    def test_metrics(self, new_run: NewRun, value: float) -> None:
        """Before a cut any value will do; one that is NaN, or infinitely worse, after it takes it back."""
        for readings, kept in (([0.5, value], False), ([value, value], value == INF), ([value, 0.5], True)):
            run, values = new_run(), iter(readings)
            guard = Guard(lambda: next(values), 0.1, higher_is_better=False, probe_after=2)  # noqa: B023
            compressor = compressor_of(run, schedule=At((3,)), guard=guard)
            train(run, compressor, 5)
            assert (compressor.orders()["blocks.0.ssm"] == 4) is kept


@pytest.mark.parametrize("value", ["0.5x", None, [], torch.ones(2), 1j])
def test_a_metric_that_is_no_number(new_run: NewRun, value: Any) -> None:
    run = new_run()
    guard = Guard(lambda: value, 0.1, higher_is_better=True, probe_after=2)
    compressor = compressor_of(run, guard=guard)
    train(run, compressor, 2)
    run.step()
    before = run.fingerprint()
    with pytest.raises(ConfigError, match="metric returned"):
        compressor.step()
    assert run.fingerprint() == before and compressor.history.cuts == ()


def test_a_model_that_diverged_is_saved_and_restored_as_it_is(new_run: NewRun, tmp_path: Any) -> None:
    run, other = new_run(), new_run()
    run.step()
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.view(-1)[0] = NAN
    save_checkpoint(tmp_path / "c", run.model, optimizer=run.optimizer)
    other.step()
    load_checkpoint(tmp_path / "c", other.model, optimizer=other.optimizer)
    pairs = zip(run.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in pairs)
