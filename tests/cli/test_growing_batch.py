"""`training.growing_batch`: larger batches after cuts, the same after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compressm.cli.metrics import read_metrics, without_clock

GROWING = ["--order", "128", "--orders", "16,4", "--set", "training.growing_batch=40", "--set", "training.log_every=1"]
RULE = ["--set", "training.growing_rate=linear", "--schedule", "constant", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    return [*tiny, *GROWING, *RULE, "--quiet"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compressm.cli.app import run

    folder = tmp_path_factory.mktemp("growing") / "run"
    assert run(["train", "digits", "--run", str(folder), *arguments]) == 0
    return folder


def trained(folder: Path) -> list[dict[str, float]]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"]


def test_batches_and_learning_rates_grow_after_cuts(whole: Path) -> None:
    records = trained(whole)
    sizes = [record["batch_size"] for record in records]
    assert sizes[:6] == [16] * 6
    assert 16 < sizes[-1] <= 40
    assert sizes == sorted(sizes)
    used = [16, *sizes[:-1]]  # a record is written when the next batch is known
    assert [record["lr"] for record in records] == pytest.approx([1e-3 * size / 16 for size in used])


@pytest.mark.parametrize("kept", [1, 2])
def test_a_run_with_growing_batches_goes_on_exactly(
    command, arguments: list[str], whole: Path, tmp_path: Path, kept: int
) -> None:
    folder = tmp_path / "run"
    keep = ["--set", "output.keep=9"]
    assert command("train", "digits", "--run", folder, *arguments, *keep).code == 0
    for later in sorted((folder / "checkpoints").iterdir())[kept:]:  # as if killed after step 0, or 10
        shutil.rmtree(later)
    assert command("train", "--resume", folder, "--quiet").code == 0
    assert without_clock(trained(folder)) == without_clock(trained(whole))


def test_contradictions_are_refused(command, tmp_path: Path) -> None:
    for settings, said in (
        (["training.growing_batch=8"], "training.growing_batch is 8; wanted 16 or more"),
        (["training.growing_rate=sqrt"], "the batch does not grow"),
    ):
        assigned = [part for setting in settings for part in ("--set", setting)]
        result = command("train", "digits", "--batch-size", "16", "--run", tmp_path / "no", *assigned)
        assert result.code != 0 and said in result.err
        assert not (tmp_path / "no").exists()
