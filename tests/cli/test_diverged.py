"""`compressm train` where training diverges: one message, no checkpoint of what is lost, and the older ones sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressm.checkpoint import read_structure
from compressm.cli.folder import RunFolder
from compressm.cli.metrics import read_metrics
from compressm.cli.objective import Objective
from compressm.training.loop import set_rates

Command = Callable[..., Any]
NAN, INF = float("nan"), float("inf")


def steps_of(folder: Path) -> list[str]:
    return [path.name[-2:] for path in RunFolder(folder).checkpoints()]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_loss(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    folder, calls, real = tmp_path / "run", [], Objective.loss

    def loss(self: Objective, model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return real(self, model, batch) * (value if len(calls) == 14 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "loss", loss)
        result = command("train", "-q", "--run", folder, *tiny)
    assert result.code == 2 and f"The loss is {value} at step 14" in one_line(result.err)
    assert steps_of(folder) == ["00", "10"]
    assert command("train", "-q", "--resume", folder).code == 0  # it was this process's fault
    assert steps_of(folder)[-1] == "24"


@pytest.mark.parametrize("at", [10, 12])
def test_weights_while_the_loss_is_still_finite(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At 10 a checkpoint is due, at 12 a cut."""
    from compressm.training import loop

    folder, calls = tmp_path / "run", []

    def rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
        calls.append(1)
        rate = set_rates(optimizer, factor)
        if len(calls) == at:
            for group in optimizer.param_groups:
                group["lr"] = NAN
        return rate

    monkeypatch.setattr(loop, "set_rates", rates)
    result = command("train", "-q", "--run", folder, *tiny)
    assert result.code == 2 and f"NaN or infinite at step {at}: training diverged" in one_line(result.err)
    assert steps_of(folder) == (["00"] if at == 10 else ["00", "10"])
    newest = RunFolder(folder).checkpoints()[-1]
    assert all(order == 16 if at == 10 else 8 < order < 14 for order in read_structure(newest).orders.values())


def test_the_validation_metric(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down as null; a guard takes the cut back."""
    folder, real, calls = tmp_path / "run", Objective.evaluate, []

    def evaluate(self: Objective, *arguments: Any, **others: Any) -> dict[str, float]:
        scores = real(self, *arguments, **others)
        calls.append(1)
        return {**scores, self.metric: NAN} if len(calls) > 3 else scores

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "evaluate", evaluate)
        result = command("train", "-q", "--run", folder, *tiny, "--guard", "0.5", "--guard-probe", "4")
    assert result.code == 0, result.err
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["kind"] for r in records if r["kind"] in ("cut", "rolled_back")] == ["cut", "rolled_back"]
    assert None in [r["accuracy"] for r in records if r["kind"] == "evaluation"]
    assert set(read_structure(RunFolder(folder).checkpoints()[-1]).orders.values()) == {16}


def test_data(command: Command, tiny: list[str], tmp_path: Path) -> None:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(20, 12, 2)).astype(np.float32)
    x[3, 4, 0] = np.nan
    np.savez(tmp_path / "d.npz", X=x, y=np.arange(20) % 2)
    result = command("train", "-q", "--data", tmp_path / "d.npz", "--run", tmp_path / "run", *tiny)
    assert result.code == 2 and "NaN" in result.err and not (tmp_path / "run").exists()
