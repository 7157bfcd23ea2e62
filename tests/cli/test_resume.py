"""A run that was stopped, in whatever way and wherever, ends as the uninterrupted one, bit for bit."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressm.checkpoint import read_structure
from compressm.cli import recorder
from compressm.cli.folder import RunFolder
from compressm.cli.metrics import read_metrics, without_clock

POINTS = 3

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def reference(kill_resume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compressm.cli.app import run

    folder = tmp_path_factory.mktemp("reference") / "run"
    assert run([*kill_resume.ARGUMENTS, "--run", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_a_random_moment(kill_resume, command: Command, reference: Path, tmp_path: Path, point: int) -> None:
    generator = random.Random(point)
    part = kill_resume.STEPS * 7 // 10 // POINTS  # the last steps are left out, for a busy machine may be late
    step = generator.randint(point * part, (point + 1) * part)
    folder = tmp_path / "run"
    kill_resume.kill_at(folder, step, generator.uniform(0, 0.1), *kill_resume.ARGUMENTS, "--run", str(folder))
    assert not (folder / "results.json").exists(), "the run was over before it could be killed"
    assert command("train", "--quiet", "--resume", folder).code == 0
    assert kill_resume.compare(folder, reference) == (True, True)


@pytest.mark.parametrize(("window", "call", "event"), [("cut", 2, 500), ("write", 5, 40)])
def test_killed_inside(
    kill_resume, command: Command, reference: Path, tmp_path: Path, window: str, call: int, event: int
) -> None:
    """In the middle of the second cut, and of writing the fifth checkpoint."""
    folder, aim = tmp_path / "run", kill_resume.Aim(window, call, event)
    assert kill_resume.kill_inside(aim, *kill_resume.ARGUMENTS, "--run", str(folder)) == -signal.SIGKILL
    assert command("train", "--quiet", "--resume", folder).code == 0
    assert kill_resume.compare(folder, reference) == (True, True)


def test_the_reference_has_cuts_and_judged_probes(reference: Path) -> None:
    cuts = [r for r in read_metrics(reference / "metrics.jsonl") if r["kind"] == "cut"]
    assert [r["report"]["layers"][0]["order_after"] for r in cuts] == [16, 10, 6]


@pytest.mark.parametrize("step", [5, 11, 12, 17])  # captures under way, right at a cut, between
def test_interrupted_by_ctrl_c(
    command: Command, tiny: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"
    stepped = recorder.Recorder.stepped

    def interrupt(self: recorder.Recorder, now: int, loss: float) -> None:
        stepped(self, now, loss)
        if now == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "stepped", interrupt)
        result = command("train", "--run", folder, *tiny)
    assert result.code == 130
    assert f"--resume {folder}" in " ".join(result.err.split())
    assert RunFolder(folder).checkpoints()[-1].name == f"step-{step:08d}"
    result = command("train", "--resume", folder)
    assert result.code == 0
    assert f"Resuming at step {step} of 24" in result.err
    _same_end(folder, finished)


def test_a_second_ctrl_c_interrupts_at_once_and_leaves_a_resumable_run(
    command: Command, tiny: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def interrupt(self: recorder.Recorder, now: int, loss: float) -> None:
        if now == 15:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "stepped", interrupt)
        assert command("train", "--run", folder, *tiny).code == 130
    assert RunFolder(folder).checkpoints()[-1].name == "step-00000010"
    assert command("train", "-q", "--resume", folder).code == 0
    _same_end(folder, finished)


def test_a_finished_run_is_only_reported_again(command: Command, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    result = command("train", "--resume", finished)
    assert result.code == 0
    assert "uncompressed (step 6)" in result.out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_run_that_has_no_checkpoint_yet_begins_again(command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(finished / name, folder)
    (folder / "metrics.jsonl").write_text('{"kind": "sta')
    assert command("train", "-q", "--resume", folder).code == 0
    _same_end(folder, finished)


def test_other_data_are_noticed(command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("split_seed: 0", "split_seed: 1"))
    result = command("train", "--resume", folder)
    assert result.code == 2
    assert "not those that" in result.err


def test_a_damaged_newest_checkpoint_gives_way_to_the_older_one(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    older, newest = RunFolder(folder).checkpoints()
    _damage(newest)
    result = command("eval", "--quiet", folder)
    assert result.code == 0
    assert f"Warning: The checkpoint {newest} cannot be used" in result.err
    assert f"The older {older} is taken instead" in result.err
    assert newest.is_dir()  # eval alters nothing
    result = command("train", "--resume", folder)
    assert result.code == 0
    assert f"Warning: The checkpoint {newest} cannot be used" in result.err
    assert "Resuming at step 20 of 24" in result.err
    assert newest.with_name(f"damaged-{newest.name}").is_dir()
    _same_end(folder, finished)


def test_without_a_sound_checkpoint_the_error_names_them_all(command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    saved = RunFolder(folder).checkpoints()
    for path in saved:
        _damage(path)
    for arguments in (["train", "--resume", folder], ["eval", folder]):
        result = command(*arguments)
        assert result.code == 2
        assert "None of the 2 checkpoints can be used" in result.err
        assert all(f"{path}: " in result.err for path in saved)
    assert RunFolder(folder).checkpoints() == saved


def _damage(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def _same_end(folder: Path, reference: Path) -> None:
    ends = [run / "checkpoints" / "step-00000024" for run in (folder, reference)]
    for name in ("model.safetensors", "training.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    assert read_structure(ends[0]).orders == read_structure(ends[1]).orders
    metrics = [without_clock(read_metrics(run / "metrics.jsonl")) for run in (folder, reference)]
    assert metrics[0] == metrics[1]
