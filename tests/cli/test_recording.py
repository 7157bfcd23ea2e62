"""TensorBoard events, pictures of awkward runs, and evaluation that leaves no trace."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressm.cli.build import (
    build_compressor,
    build_model,
    build_optimizer,
    build_rates,
    build_schedule,
    build_settings,
    model_config,
    require_reachable_cuts,
)
from compressm.cli.config import CompressionConfig, ModelOptions, PresetName, RateSchedule, RunConfig, TrainingConfig
from compressm.cli.objective import Objective
from compressm.cli.report.rows import Table
from compressm.cli.report.show import markdown_table
from compressm.cli.report.spectra_picture import SpectrumLine, draw_spectra
from compressm.data import Batcher, load_digits
from compressm.reduction.criteria import ErrorBound, HankelEnergy, Reference
from compressm.surgery.policy import StatePolicy
from compressm.training.loop import LoopObserver, LoopSettings, Moment, fit, warmup_then
from compressm.training.presets import PRESETS
from compressm.training.schedule import At, Every, Window

Command = Callable[..., Any]


def test_tensorboard_events_hold_one_value_a_step_also_after_a_resume(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    arguments = [*tiny, "--set", "output.tensorboard=true"]
    assert command("train", "-q", "--run", folder, *arguments).code == 0
    shutil.rmtree(folder / "checkpoints" / "step-00000024")  # as if it had been killed after step 20
    assert command("train", "-q", "--resume", folder).code == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [4, 8, 12, 16, 20, 24]
    assert [e.step for e in events.Scalars("validation/accuracy")] == [6, 10, 12, 20, 24]
    assert [e.step for e in events.Scalars("order/blocks.0.ssm")] == [6, 12]


class _Silent(LoopObserver):
    """Counts evaluations."""

    def __init__(self) -> None:
        self.evaluations: list[tuple[int, Moment]] = []

    def stepped(self, step, loss) -> None: ...
    def logged(self, step, loss, rate, seconds) -> None: ...
    def cutting(self, step) -> None: ...
    def happened(self, step, event) -> None: ...
    def save(self, state) -> None: ...

    def evaluated(self, step, moment, scores) -> None:
        self.evaluations.append((step, moment))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_how_often_the_model_is_evaluated_does_not_change_training(dropout: float) -> None:
    chosen = RunConfig(
        model=ModelOptions(blocks=1, width=8, order=16, dropout=dropout),
        training=TrainingConfig(batch_size=16),
        compression=CompressionConfig(at=(5, 9), orders=(8, 4)),
    )
    dataset = load_digits()
    weights = []
    for every in (1, 100):
        model = build_model(model_config(chosen, dataset), 0)
        optimizer = build_optimizer(model, chosen.training)
        objective, batcher, observer = Objective.of(dataset), Batcher(dataset, 16, 0), _Silent()
        compressor = build_compressor(model, optimizer, chosen, objective, lambda: 0.0)
        fit(
            model,
            optimizer,
            batch_at=batcher.training,
            loss_of=objective.loss,
            evaluate=lambda: objective.evaluate(model, batcher.in_order(dataset.validation)),  # noqa: B023
            rate_at=build_rates(chosen.training),
            compressor=compressor,
            settings=LoopSettings(12, 5, every, 100),
            observer=observer,
        )
        assert (5, Moment.BEFORE_CUT) in observer.evaluations
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_learning_rate_rises_and_falls_as_asked() -> None:
    cosine = warmup_then(100, 10, 0.01, cosine=True)
    assert [cosine(k) for k in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert cosine(10) == 1.0
    assert cosine(99) == pytest.approx(0.01)
    assert all(cosine(k) >= cosine(k + 1) for k in range(10, 99))
    constant = build_rates(TrainingConfig(schedule=RateSchedule.CONSTANT, warmup=2))
    assert [constant(k) for k in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_state_space_layers_have_their_own_rate_and_no_decay() -> None:
    config = RunConfig(training=TrainingConfig(lr=0.1, ssm_lr_factor=0.25, weight_decay=0.3))
    model = build_model(model_config(config, load_digits()), 0)
    ssm, rest = build_optimizer(model, config.training).param_groups
    assert (ssm["base_lr"], ssm["weight_decay"]) == (0.025, 0.0)
    assert (rest["base_lr"], rest["weight_decay"]) == (0.1, 0.3)
    inside = sum(p.numel() for name, p in model.named_parameters() if ".ssm." in name)
    assert sum(p.numel() for p in ssm["params"]) == inside
    assert sum(p.numel() for p in rest["params"]) == sum(p.numel() for p in model.parameters()) - inside


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"at": (3, 7)}, At((3, 7))),
        ({"every": 5}, Every(5)),
        ({"every": 5, "window": (10, 40)}, Every(5, 10, 40)),
        ({"window": (10, 50), "cuts": 2}, Window(10, 50, 2)),
        ({"window": (10, 50), "orders": (5, 4, 3)}, Window(10, 50, 3)),
        ({"cuts": 2}, Window(0, 80, 2)),
        ({"orders": (9, 8, 7, 6, 5)}, Window(0, 80, 5)),
    ],
)
def test_when_to_cut(options: dict[str, object], schedule: object) -> None:
    found = build_schedule(CompressionConfig(**options), PRESETS["default"], 200)
    assert found == schedule


@pytest.mark.parametrize(
    "options",
    [
        {"at": (30,)},
        {"window": (0, 30), "cuts": 3},
        {"every": 30},
        {"every": 15, "orders": (9, 8)},
        {"at": (100,), "enabled": False},
    ],
)
def test_cuts_up_to_the_last_step_are_accepted(options: dict[str, Any]) -> None:
    require_reachable_cuts(CompressionConfig(**options), 30)


def test_spectra_with_zeros_and_nothing_can_be_drawn(tmp_path: Path) -> None:
    lines = {"zeros": [SpectrumLine("a", [0.0, 0.0]), SpectrumLine("b", [1.0, 1e-20, 0.0], {"x": 1})], "none": []}
    draw_spectra(tmp_path / "a.png", lines, "title")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_markdown_is_a_table_with_its_note() -> None:
    text = markdown_table(Table("T", ("a", "b|c"), (("1", "2"),), "note"))
    assert text == "## T\n\n| a | b\\|c |\n| --- | ---: |\n| 1 | 2 |\n\nnote\n"


def test_an_objective_is_the_mean_over_cases_whatever_the_batches() -> None:
    dataset = load_digits()
    model = build_model(model_config(RunConfig(), dataset), 0).eval()
    objective = Objective.of(dataset)
    with torch.no_grad():
        scores = [objective.evaluate(model, Batcher(dataset, n, 0).in_order(dataset.test)) for n in (270, 37)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    assert math.isclose(scores[0]["loss"], scores[1]["loss"], rel_tol=1e-5)


def test_every_preset_has_a_name_on_the_command_line() -> None:
    assert {name.value for name in PresetName} == set(PRESETS)


def test_options_stand_in_the_presets_place() -> None:
    plain = build_settings(CompressionConfig(), PRESETS["paper"])
    assert plain == PRESETS["paper"].settings
    options = CompressionConfig(
        discard=0.1, reference=Reference.INITIAL, multiple=8, optimizer_policy=StatePolicy.RESET
    )
    found = build_settings(options, PRESETS["paper"])
    assert found.criterion == HankelEnergy(0.1, Reference.INITIAL)
    assert (found.multiple, found.minimum_gain, found.optimizer_policy) == (8, 0.05, StatePolicy.RESET)
    assert build_settings(CompressionConfig(bound=0.5), PRESETS["white"]).criterion == ErrorBound(0.5)
