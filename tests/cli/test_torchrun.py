"""`torchrun -m compressm train`: the same run on two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressm.cli.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def torchrun(*arguments: object) -> None:
    """Two processes; the separator keeps torchrun from reading --run as an option of its own."""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    subprocess.run([*command, "compressm", *map(str, arguments)], env=environment, check=True, timeout=800)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"]


def test_two_processes_train_as_one_and_resume(command, tiny: list[str], tmp_path: Path) -> None:
    same = [*tiny, "--dropout", "0", "--set", "model.norm=layer", "--quiet"]
    assert command("train", "digits", "--run", tmp_path / "one", *same).code == 0
    torchrun("train", "digits", "--run", tmp_path / "two", *same)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[1]["test"] == pytest.approx(results[0]["test"], rel=1e-3)
    shutil.rmtree(sorted((tmp_path / "two" / "checkpoints").iterdir())[-1])  # as if killed after step 20
    whole = losses(tmp_path / "two")
    torchrun("train", "--resume", tmp_path / "two", "--quiet")
    assert losses(tmp_path / "two") == whole


def test_all_ranks_take_rank_0s_growing_batch(tiny: list[str], tmp_path: Path) -> None:
    growing = ["--order", "128", "--orders", "16,4", "--set", "training.growing_batch=41"]
    torchrun("train", "digits", "--run", tmp_path / "run", *tiny, *growing, "--set", "model.norm=layer", "--quiet")
    whole = losses(tmp_path / "run")
    sizes = [r["batch_size"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert 16 == sizes[0] < sizes[-1] <= 41
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    torchrun("train", "--resume", tmp_path / "run", "--quiet")
    assert losses(tmp_path / "run") == whole
