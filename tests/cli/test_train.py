"""`compressm train` from arguments to the run folder."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compressm.cli.folder import RunFolder
from compressm.cli.metrics import read_metrics, without_clock
from compressm.cli.responses import load_pairs
from compressm.cli.stored import open_stored

Command = Callable[..., Any]


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "run.json", "metrics.jsonl", "results.json", "report.md", "checkpoints", "responses", "pictures",
    }  # fmt: skip
    assert [p.name for p in RunFolder(finished).checkpoints()] == ["step-00000020", "step-00000024"]
    for name in ("spectra", "orders", "loss", "responses"):
        content = (finished / "pictures" / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(content) > 10_000
        assert f"pictures/{name}.png" in (finished / "report.md").read_text()
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["training"]["threads"] == 1
    assert config["model"]["order"] == 16


def test_metrics_tell_the_story_in_order(finished: Path) -> None:
    records = read_metrics(finished / "metrics.jsonl")
    told = [(r["kind"], r["step"], r.get("moment")) for r in records if r["kind"] != "train"]
    assert told == [
        ("start", 0, None),
        ("evaluation", 6, "before_cut"),
        ("cut", 6, None),
        ("evaluation", 6, "after_cut"),
        ("evaluation", 10, "regular"),
        ("evaluation", 12, "before_cut"),
        ("cut", 12, None),
        ("evaluation", 12, "after_cut"),
        ("evaluation", 20, "regular"),
        ("evaluation", 24, "end"),
    ]
    assert [r["step"] for r in records if r["kind"] == "train"] == [4, 8, 12, 16, 20, 24]
    assert all(0 <= r["accuracy"] <= 1 and math.isfinite(r["loss"]) for r in records if r["kind"] == "evaluation")
    first, second = (r["report"]["layers"][0] for r in records if r["kind"] == "cut")
    assert first["order_before"] == 16
    assert 16 > first["order_after"] == second["order_before"] > second["order_after"]
    assert first["controllability"] == "data"  # captured in the training steps before the cut


def test_the_report_has_the_figures_of_the_metrics(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    records = read_metrics(finished / "metrics.jsonl")
    end = next(r for r in records if r.get("moment") == "end")
    assert f"{100 * end['accuracy']:.1f} %" in report
    for cut in (r for r in records if r["kind"] == "cut"):
        layer = cut["report"]["layers"][0]
        assert f"{layer['order_before']} → {layer['order_after']}" in report
        assert f"{100 * layer['output_change']:.2f} %" in report
    assert f"{records[0]['parameters']:,}" in report


def test_responses_before_and_after_are_those_of_the_cut(finished: Path) -> None:
    pair = load_pairs(RunFolder(finished).response_file(6))["blocks.0.ssm"]
    assert pair.before.shape == pair.after.shape == (64,)
    assert 0 < np.linalg.norm(pair.after - pair.before) < np.linalg.norm(pair.before)


def test_the_final_checkpoint_holds_the_cut_model(finished: Path) -> None:
    stored = open_stored(finished)
    cut = [r for r in read_metrics(finished / "metrics.jsonl") if r["kind"] == "cut"][-1]
    assert stored.model.blocks[0].ssm.order == cut["report"]["layers"][0]["order_after"]
    assert sum(p.numel() for p in stored.model.parameters()) == cut["parameters"]
    assert stored.model.config.order == 16


def test_the_same_seed_gives_the_same_run_and_seed_0_is_a_seed(
    command: Command, tiny: list[str], finished: Path, tmp_path: Path
) -> None:
    reference = without_clock(read_metrics(finished / "metrics.jsonl"))
    for seed, same in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        arguments = [*tiny]
        assert command("train", "-q", "--run", folder, "--seed", seed, *arguments).code == 0
        assert (without_clock(read_metrics(folder / "metrics.jsonl")) == reference) is same


def test_orders_are_reached_one_a_cut_and_tables_are_shown(command: Command, tiny: list[str], tmp_path: Path) -> None:
    result = command("train", "--run", tmp_path / "run", *tiny, "--orders", "11,5")
    assert result.code == 0
    assert "16 → 11 → 5" in result.out
    for text in ("uncompressed (step 6)", "end (step 24)", "training step", "validation accuracy", "output change"):
        assert text in result.out
    assert f"Run folder {tmp_path / 'run'}" in result.err
    assert "Traceback" not in result.err


def test_cuts_are_fitted_where_a_run_asks_for_it(command: Command, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    board = ["--set", "output.tensorboard=true", "--orders", "8,3"]
    assert command("train", "-q", "--run", folder, *tiny, *board, "--refit").code == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["compression"]["refit"] is True
    report = (folder / "report.md").read_text()
    layers = {r["step"]: r["report"]["layers"][0] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "cut"}
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    fitted = {step: layer for step, layer in layers.items() if layer["fit_after"] is not None}
    assert fitted and "on captured sequences that the fit did not see" in report
    for layer in fitted.values():
        assert f"{100 * layer['fit_before']:.2f} % → {100 * layer['fit_after']:.2f} %" in report
    for name in ("fit_before", "fit_after"):
        told = {e.step: e.value for e in events.Scalars(f"{name}/{layers[6]['name']}")}
        assert told == pytest.approx({step: layer[name] for step, layer in fitted.items()}, rel=1e-6)


def test_the_papers_preset_has_a_bound_and_no_cut_is_a_choice(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    result = command("train", "-q", "--run", tmp_path / "a", *tiny, "--preset", "paper", "--discard", "0.3")
    assert result.code == 0
    layer = next(r for r in read_metrics(tmp_path / "a" / "metrics.jsonl") if r["kind"] == "cut")["report"]["layers"][0]
    assert layer["controllability"] == "white"
    assert layer["hinf_error"] > 0
    assert layer["bound"] is not None
    result = command("train", "-q", "--run", tmp_path / "b", *tiny, "--no-compress")
    assert result.code == 0
    assert "No cut was made." in result.out
    assert {r["kind"] for r in read_metrics(tmp_path / "b" / "metrics.jsonl")} == {"start", "train", "evaluation"}


def test_the_guard_takes_a_cut_back_and_the_report_says_so(command: Command, tiny: list[str], tmp_path: Path) -> None:
    arguments = ["--steps", "80", "--at", "70", "--orders", "1", "--guard", "0.02", "--guard-probe", "2"]
    result = command("train", "-q", "--run", tmp_path / "run", *tiny, "--lr", "0.01", *arguments)
    assert result.code == 0
    back = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "rolled_back"]
    assert [(r["step"], r["cut_step"]) for r in back] == [(72, 70)]
    assert back[0]["after"] < back[0]["before"] - 0.02
    assert "taken back at step 72" in " ".join(result.out.split())
    assert "16 → 1 → 16" in result.out
    assert open_stored(tmp_path / "run").model.blocks[0].ssm.order == 16


@pytest.mark.parametrize("kind", [["--layer", "dense"], ["--bidirectional"], ["--blocks", "2", "--width", "6"]])
def test_other_models_are_trained_cut_analysed_and_read_back(
    command: Command, tiny: list[str], tmp_path: Path, kind: list[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny, "--orders", "9,6", *kind]
    assert command("train", "-q", "--run", folder, *arguments).code == 0
    orders = [layer["order_after"] for layer in _cuts(folder)[-1]["report"]["layers"]]
    assert len(orders) == (1 if "dense" in kind else 2)
    assert all(order <= 6 for order in orders)
    result = command("analyze", folder, "--picture", tmp_path / "a.png")
    assert result.code == 0
    assert command("eval", folder).code == 0


def _cuts(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "cut"]


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_own_ragged_arrays(command: Command, tiny: list[str], tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 80)
    x = generator.normal(size=(lengths.sum(), 2))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    means = np.add.reduceat(x[:, 0], offsets[:-1]) / lengths
    y = (means > 0).astype(int) if kind == "classes" else means * 100
    np.savez(tmp_path / "mine.npz", X=x, offsets=offsets, y=y)
    result = command(
        "train", "-q", "--data", tmp_path / "mine.npz", "--run", tmp_path / "run", *tiny, "--orders", "8,4"
    )
    assert result.code == 0, result.err
    name = "accuracy" if kind == "classes" else "rmse"
    assert f"test {name}" in result.out
    evaluated = command("eval", tmp_path / "run", "-q")
    assert evaluated.code == 0
    assert f"test {name}" in evaluated.out
    end = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    if kind == "values":
        assert end["rmse"] == pytest.approx(math.sqrt(end["loss"]) * np.std(y), rel=0.2)
