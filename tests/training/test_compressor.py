"""The compressor in a real loop with real cuts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compressm.errors import AdapterError, CompressmError, ConfigError, SurgeryError
from compressm.layers import LRU
from compressm.reduction.criteria import (
    Criterion,
    FixedFraction,
    FixedOrder,
    HankelEnergy,
    OrderChoice,
    Reference,
    Spectrum,
)
from compressm.reduction.result import GramianSource
from compressm.training import PRESETS, At, Cut, Every, Guard, InTrainingCompressor, OnError, Skipped
from compressm.training.evaluation import undisturbed

RunFactory = Callable[..., Any]
FIXED = (FixedOrder(8), FixedOrder(5))


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_optimizer = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return on_optimizer + sum(len(getattr(m, n)) for m in model.modules() for n in names)


def test_two_cuts_in_a_run(make_run: RunFactory) -> None:
    seen: list[Cut] = []
    uncut = make_run(compress=False)
    uncut.train(16)
    run = make_run(schedule=At((4, 9)), criteria=FIXED, on_cut=seen.append)
    parameters = {n: id(p) for n, p in run.model.named_parameters()}
    groups = [id(g) for g in run.optimizer.param_groups]
    run.train(16)
    assert run.optimizer.param_groups[0]["lr"] == uncut.optimizer.param_groups[0]["lr"]
    assert run.orders() == [5, 5]
    assert list(run.compressor.orders().values()) == [5, 5]
    assert [e.step for e in run.compressor.history] == [4, 9]
    assert seen == list(run.compressor.history.cuts)
    assert list(run.compressor.history.orders().values()) == [[(0, 12), (4, 8), (9, 5)]] * 2
    assert {n: id(p) for n, p in run.model.named_parameters()} == parameters
    assert [id(g) for g in run.optimizer.param_groups] == groups
    assert run.scheduler.optimizer is run.optimizer
    assert run.losses[:4] == uncut.losses[:4]
    assert torch.isfinite(torch.tensor(run.losses)).all()
    assert all(run.optimizer.state[p]["exp_avg"].shape == p.shape for p in run.model.parameters())
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train(1)
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_step_returns_the_events_of_that_step(make_run: RunFactory) -> None:
    run = make_run(schedule=At((3,)), criteria=FIXED)
    assert [len(run.train(1)) for _ in range(5)] == [0, 0, 1, 0, 0]


def test_cuts_are_logged_in_one_line(make_run: RunFactory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "compressm.training")
    make_run(schedule=At((2,)), criteria=FIXED).train(4)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("compressm.training")]
    assert len(lines) == 1
    assert "step 2" in lines[0]
    assert "12 -> 8" in lines[0]


@pytest.mark.parametrize(("steps", "wanted"), [(0, GramianSource.WHITE), (2, GramianSource.DATA)])
def test_the_layers_inputs_are_captured_before_a_cut(make_run: RunFactory, steps: int, wanted: GramianSource) -> None:
    run = make_run(schedule=At((4,)), criteria=FIXED, calibration_steps=steps)
    (cut,) = run.train(5)
    for layer in cut.report.layers:
        assert layer.controllability == wanted.value
        assert (layer.output_change is not None) is (steps > 0)


def test_the_papers_preset_measures_the_output_change_too(make_run: RunFactory) -> None:
    run = make_run(schedule=At((4,)), criteria=FIXED, settings="paper")
    (cut,) = run.train(5)
    for layer in cut.report.layers:
        assert (layer.controllability, layer.observability) == ("white", "white")
        assert layer.output_change is not None
        assert layer.bound is not None


def test_capture_is_on_in_the_steps_before_a_cut_only(make_run: RunFactory) -> None:
    run = make_run(schedule=At((6,)), criteria=FIXED, calibration_steps=2)
    idle = hooks(run.model, run.optimizer)
    on = []
    for _ in range(8):
        on.append(hooks(run.model, run.optimizer) > idle)
        run.train(1)
    assert on == [False, False, False, False, True, True, False, False]


def test_a_cut_right_after_the_first_step_is_captured(make_run: RunFactory) -> None:
    run = make_run(schedule=At((1,)), criteria=FIXED)
    (cut,) = run.train(1)
    assert cut.report.layers[0].controllability == "data"


def test_closing_removes_every_hook(make_run: RunFactory) -> None:
    bare = make_run(compress=False)
    run = make_run(schedule=At((2,)), criteria=FIXED)
    run.train(1)
    run.compressor.close()
    assert hooks(run.model, run.optimizer) == hooks(bare.model, bare.optimizer)
    with pytest.raises(SurgeryError, match="closed"):
        run.compressor.step()
    run.compressor.close()
    assert run.compressor.finish() == ()


class Watching(Criterion):
    """Halves the order and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Spectrum] = []

    def choose(self, spectrum: Spectrum) -> OrderChoice:
        self.seen.append(spectrum)
        return FixedFraction(0.5).choose(spectrum)


def test_later_cuts_are_shown_the_budget_of_the_uncompressed_layer(make_run: RunFactory) -> None:
    watching = Watching()
    run = make_run(schedule=At((2, 4, 6)), criteria=[watching], settings="white")
    run.train(7)
    assert run.orders() == [2, 2]
    reports = [cut.report for cut in run.compressor.history.cuts]
    for number, shown in enumerate((watching.seen[::2], watching.seen[1::2])):
        assert [s.order for s in shown] == [12, 6, 3]
        assert shown[0].budget is None
        total = float(shown[0].values.sum())
        lost = [r.layers[number].discarded * sum(r.layers[number].hankel_singular_values) for r in reports]
        assert [s.budget.total for s in shown[1:]] == pytest.approx([total, total])
        assert [s.budget.spent for s in shown[1:]] == pytest.approx([lost[0], lost[0] + lost[1]])
        assert lost[0] > 0


def test_a_budget_of_the_initial_spectrum_is_spent_once(make_run: RunFactory) -> None:
    run = make_run(schedule=At((2, 4, 6)), criteria=[HankelEnergy(0.1, Reference.INITIAL)], settings="white")
    run.train(7)
    for budget in run.compressor.history.budgets().values():
        assert 0 < budget.spent <= 0.1 * budget.total * (1 + 1e-9)


def test_an_optimizer_of_another_model_is_refused(make_run: RunFactory) -> None:
    model, other = make_run(schedule=Every(3)).model, nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="No optimizer given holds a parameter of the state space layers"):
        InTrainingCompressor(model, torch.optim.SGD(other.parameters()), schedule=Every(3))


def test_a_model_without_state_space_layers_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    with pytest.raises(AdapterError, match=r"GELU, Linear, Sequential.*adapters="):
        InTrainingCompressor(model, torch.optim.SGD(model.parameters()), schedule=Every(3))


def test_a_wrapped_model_is_refused_at_once(make_run: RunFactory) -> None:
    model = make_run(compress=False).model
    with pytest.raises(SurgeryError, match="module"):
        InTrainingCompressor(nn.DataParallel(model), torch.optim.SGD(model.parameters()), schedule=Every(3))


def test_validation_before_a_cut_is_not_captured(make_run: RunFactory) -> None:
    def weights(validate: bool) -> dict[str, torch.Tensor]:
        run = make_run(schedule=At((3,)), criteria=FIXED)
        for _ in range(4):
            if validate:
                assert run.compressor.cut_due is (run.compressor.steps == 2)
                with undisturbed(run.model), run.compressor.not_capturing():
                    run.model(100 * torch.randn(5, 20, 2))
            run.train(1)
        return run.model.state_dict()

    one, other = weights(True), weights(False)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_loss_scale_does_not_change_the_cut(make_run: RunFactory) -> None:
    def train(scaler: torch.amp.GradScaler | None) -> Any:
        run = make_run(compress=False)
        guard = Guard(lambda: 1.0, allowed=0.1, higher_is_better=True, probe_after=2)
        compressor = InTrainingCompressor(
            run.model, run.optimizer, schedule=At((2,)), criteria=FIXED, grad_scaler=scaler, guard=guard
        )
        for step in range(4):
            x, y = run.batch(step)
            loss = nn.functional.cross_entropy(run.model(x), y)
            run.optimizer.zero_grad()
            if scaler is None:
                loss.backward()
                run.optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(run.optimizer)
                scaler.update()
            compressor.step()
        return compressor.history[0].report.layers

    plain, scaled = train(None), train(torch.amp.GradScaler("cpu", init_scale=1024.0))
    for a, b in zip(plain, scaled, strict=True):
        assert a.hankel_singular_values == pytest.approx(b.hankel_singular_values, rel=1e-3, abs=1e-9)


def break_a_layer(run: Any) -> None:
    with torch.no_grad():
        next(m for m in run.model.modules() if isinstance(m, LRU)).nu_log.fill_(float("nan"))


def test_a_cut_that_cannot_be_made_is_skipped_with_a_warning(
    make_run: RunFactory, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(schedule=At((2, 3)), criteria=FIXED)
    run.train(1)
    run.backward()
    run.optimizer.step()
    break_a_layer(run)
    shapes = [p.shape for p in run.model.parameters()]
    (event,) = run.compressor.step()
    assert isinstance(event, Skipped)
    assert event.step == 2
    assert [p.shape for p in run.model.parameters()] == shapes
    assert event in run.compressor.history
    assert any(r.levelno == logging.WARNING and "step 2" in r.getMessage() for r in caplog.records)


def test_or_raises_where_that_is_wanted(make_run: RunFactory) -> None:
    run = make_run(schedule=At((1,)), criteria=FIXED, on_error=OnError.RAISE)
    run.backward()
    run.optimizer.step()
    break_a_layer(run)
    with pytest.raises(CompressmError):
        run.compressor.step()
    assert run.compressor.steps == 1


def test_inside_a_closure_nothing_is_counted(make_run: RunFactory) -> None:
    run = make_run(schedule=At((1,)), criteria=FIXED)

    def closure() -> float:
        loss = run.backward()
        run.compressor.step()
        return loss.item()

    with pytest.raises(SurgeryError, match="closure"):
        run.optimizer.step(closure)
    assert run.compressor.steps == 0
    assert run.orders() == [12, 12]
    run.train(2)  # a step that returns clears it
    assert run.orders() == [8, 8]


def test_an_old_graph_fails_loudly_and_training_goes_on(make_run: RunFactory) -> None:
    run = make_run(schedule=At((2,)), criteria=FIXED)
    run.train(1)
    x, y = run.batch(77)
    old = nn.functional.cross_entropy(run.model(x), y)
    run.train(1)
    assert run.orders() == [8, 8]
    with pytest.raises(RuntimeError):
        old.backward()
    run.train(2)
    assert torch.isfinite(torch.tensor(run.losses)).all()


def test_a_fraction_every_few_steps(make_run: RunFactory) -> None:
    run = make_run(schedule=Every(2), criteria=[FixedFraction(0.25)])
    run.train(6)
    assert [series[-1][1] for series in run.compressor.history.orders().values()] == [6, 6]  # 12 -> 9 -> 7 -> 6
    assert run.orders() == [6, 6]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "either total_steps= .* or schedule="),
        ({"total_steps": 1000, "schedule": At((3,))}, "not both"),
        ({"total_steps": 5}, "too short"),
        ({"schedule": 3}, "wanted one such as"),
        ({"schedule": At((3,)), "settings": "papr"}, r"\['data', 'default', 'paper', 'white'\]"),
        ({"schedule": At((3,)), "settings": 3}, "name of a preset"),
        ({"schedule": At((3,)), "criteria": ["x"]}, "criteria"),
        ({"schedule": At((3,)), "calibration_steps": -1}, "calibration_steps"),
    ],
)
def test_contradicting_settings_are_refused(make_run: RunFactory, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_run(**arguments)


@pytest.mark.parametrize("optimizer", [[], "adam", [None]])
def test_what_is_no_optimizer_is_refused(make_run: RunFactory, optimizer: Any) -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        InTrainingCompressor(make_run(compress=False).model, optimizer, schedule=At((3,)))


@pytest.mark.parametrize(("name", "wanted"), [("paper", [10, 20, 30, 40]), ("default", [40, 80, 120, 160])])
def test_the_presets_schedules(make_run: RunFactory, name: str, wanted: list[int]) -> None:
    schedule = make_run(total_steps=400, settings=name).compressor.plan.schedule
    assert [s for s in range(400) if schedule.is_cut(s)] == wanted
    assert make_run(total_steps=400, settings=PRESETS[name].settings).compressor.plan.settings is PRESETS[name].settings
