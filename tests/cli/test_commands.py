"""analyze, compress, eval; and errors told in one message."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressm.checkpoint import read_structure
from compressm.cli.stored import open_stored
from compressm.cli.stored_analysis import without_data
from compressm.errors import DataError
from compressm.reduction.result import GramianSource
from compressm.training.presets import PRESETS

Command = Callable[..., Any]


def test_analyze_shows_spectra_and_what_each_tolerance_gives(command: Command, finished: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    result = command("analyze", finished, "--picture", picture, "--tolerances", "0.5,0.01,0")
    assert result.code == 0
    assert "data / loss" in result.out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    row = next(
        line.split() for line in result.out.splitlines() if line.strip().startswith("blocks.0.ssm") and "/" not in line
    )
    now, half, little, nothing = map(int, row[1:])
    assert half < little <= nothing <= now
    parameters = next(line.split() for line in result.out.splitlines() if line.strip().startswith("parameters"))
    assert int(parameters[1]) - int(parameters[2]) == (now - half) * (3 + 4 * 8)  # nu, theta, gamma, and B, C twice


def test_analyze_without_data(command: Command, finished: Path, tmp_path: Path) -> None:
    result = command("analyze", finished, "--white", "--picture", tmp_path / "a.png", "--preset", "paper")
    assert result.code == 0
    assert "white / white" in result.out


@pytest.mark.parametrize("arguments", [["--white"], ["--preset", "white"], ["--preset", "paper"]])
def test_classical_gramians_are_shown_without_the_data(
    command: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise DataError("the data are gone")

    monkeypatch.setattr("compressm.cli.loading.load_dataset", missing)
    analyze = ("analyze", finished, "--picture", tmp_path / "a.png")
    assert command(*analyze, *arguments).code == 0
    assert "the data are gone" in command(*analyze).err


def test_white_asks_for_no_data_and_so_misses_none(command: Command, finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "white"
    assert command("compress", finished, "--order", 3, "--white", "--out", target).code == 0
    for layer in read_structure(target).extra["compression"]["layers"]:
        assert (layer["controllability"], layer["observability"]) == ("white", "white")
        assert not layer["fallbacks"]
    settings = without_data(PRESETS["default"]).discarding(0.1)  # what analyze asks for
    assert (settings.controllability, settings.observability) == (GramianSource.WHITE, GramianSource.WHITE)


def test_compress_writes_a_smaller_checkpoint_that_eval_reads(command: Command, finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    result = command("compress", finished, "--order", 3, "--out", target)
    assert result.code == 0
    assert f"→ {open_stored(target).model.blocks[0].ssm.order}" in result.out
    assert open_stored(target).model.blocks[0].ssm.order <= 3
    assert (
        read_structure(target).extra["compression"]["layers"][0]["order_before"]
        == open_stored(finished).model.blocks[0].ssm.order
    )
    shown = next(line for line in result.out.splitlines() if "test accuracy" in line).split()
    evaluated = command("eval", target)
    assert evaluated.code == 0
    assert f"{shown[4]} %" in evaluated.out  # test accuracy A % B %
    again = command("compress", finished, "--order", 3, "--out", target)
    assert again.code == 2
    assert "exists; choose another --out" in again.err
    (tmp_path / "file").write_text("text")
    nowhere = command("compress", finished, "--order", 3, "--out", tmp_path / "file" / "small")
    assert nowhere.code == 2
    assert f"{tmp_path / 'file'} is no folder that may be written" in nowhere.err


def test_compress_by_default_writes_beside_the_run(command: Command, finished: Path) -> None:
    result = command("compress", finished, "--discard", "0.2")
    target = finished / "compressed" / "step-00000024-discard-0.2"
    assert result.code == 0
    assert str(target) in result.out
    shutil.rmtree(finished / "compressed")
    assert command("compress", finished).code == 2
    assert command("compress", finished, "--order", 2, "--discard", 0.1).code == 2


def test_compress_fits_where_it_looks_at_data(command: Command, finished: Path, tmp_path: Path) -> None:
    def compress(*options: object) -> tuple[dict[str, Any], str]:
        target = tmp_path / "-".join(map(str, ("cut", *options)))
        result = command("compress", finished, "--order", 3, "--out", target, *options)
        assert result.code == 0
        return read_structure(target).extra["compression"]["layers"][0], result.out

    fitted, shown = compress()
    assert fitted["fit_after"] < fitted["fit_before"]
    gain = f"{100 * fitted['fit_before']:.2f} % → {100 * fitted['fit_after']:.2f} %"
    assert gain in shown and "on captured sequences that the fit did not see" in " ".join(shown.split())
    assert compress("--refit")[0]["fit_after"] == fitted["fit_after"]
    for options in (["--no-refit"], ["--white"], ["--preset", "white"]):
        plain, shown = compress(*options)
        assert plain["fit_after"] is None and not plain["fallbacks"] and "fit " not in shown


def test_eval_agrees_with_what_the_run_measured(command: Command, finished: Path) -> None:
    wanted = json.loads((finished / "results.json").read_text())["test"]["accuracy"]
    result = command("eval", finished)
    assert f"{100 * wanted:.1f} %" in result.out
    assert "cases" in result.out
    assert command("eval", finished, "--split", "validation").code == 0


def test_a_model_is_not_evaluated_on_data_that_do_not_fit(command: Command, finished: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", X=np.zeros((20, 9, 2)), y=np.arange(20) % 2)
    result = command("eval", finished, "--data", tmp_path / "other.npz")
    assert result.code == 2
    assert "2 channels and 2 outputs, but the model was made for 1 and 10" in result.err
    assert command("analyze", finished, "--data", tmp_path / "other.npz").code == 2


def test_a_damaged_checkpoint_is_one_clear_message(command: Command, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished / "checkpoints" / "step-00000024", copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    result = command("eval", copy)
    assert result.code == 2
    assert "model.safetensors" in result.err
    assert "Traceback" not in result.err
    result = command("eval", tmp_path)
    assert result.code == 2
    assert "neither a checkpoint" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digitz"], "Did you mean 'digits'"),
        (["train", "--ordr", "3"], "--order"),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--set", "training.stpes=3"], "Did you mean 'training.steps'"),
        (["train", "--preset", "papre"], "Did you mean 'paper'"),
        (["train", "--window", "1"], "wanted 2 values"),
        (["train", "--orders", "8,x"], "compression.orders is 'x'"),
        (["train", "--discard", "0.1", "--drop", "0.1"], "contradict"),
        (["train", "--refit", "--preset", "white"], "preset 'white' takes classical Gramians, which look at none"),
        (["train", "--refit", "--set", "compression.bound=0.1"], "refit and bound contradict each other"),
        (["train", "--refit", "--set", "compression.calibration_steps=0"], "calibration_steps is 0: none are captured"),
        (["train", "--set", "compression.refitt=true"], "Did you mean 'compression.refit'?"),
        (["train", "--set", "compression.refit=1"], "compression.refit is 1; wanted true or false"),
        (["compress", "x", "--order", "2", "--refit", "--white"], "--white looks at none; give one of them"),
        (["compress", "x", "--order", "2", "--refit", "--preset", "paper"], "Use the preset 'default' or 'data'"),
        (["train", "--data", "missing.npz"], "missing.npz does not exist"),
        (["train", "--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["train", "--resume", "missing"], "missing is not a run folder"),
        (["train", "--resume", "missing", "--lr", "1"], "--resume goes on with the settings of the run"),
        (["train", "--steps", "5"], "steps with --at, or with --window and --cuts, or raise --steps"),
        (["train", "--steps", "30", "--at", "10,100"], "at asks for cuts at 100, but training.steps is 30"),
        (["train", "--steps", "30", "--window", "0,31"], "window ends at 31, but training.steps is 30"),
        (["train", "--steps", "30", "--every", "31"], "every is 31, but training.steps is 30: no cut"),
        (["train", "--steps", "30", "--every", "9", "--window", "5,12"], "window is 5,12: no cut"),
        (["train", "--steps", "30", "--every", "15", "--orders", "9,8,7"], "3 orders, but only 2 cuts"),
        (["trian"], "trian"),
        (["train", "--set", "training.lr=nan"], "training.lr is 'nan'; wanted a finite number"),
        (["compress", "x", "--order", "2", "--preset", "papr"], "Did you mean 'paper'?"),
        (["analyze", "x", "--preset", "papr"], "Did you mean 'paper'?"),
        (["analyze", "missing"], "neither a checkpoint"),
        (["analyze", "x", "--tolerances", "a"], "--tolerances is 'a'"),
        (["analyze", "x", "--tolerances", "0.1,1"], "--tolerances is 1; wanted at least 0 and less than 1"),
        (["compress", "x", "--discard", "nan"], "--discard is nan; wanted at least 0 and less than 1"),
        (["train", "digits", "--data", "my.npz"], "The data are 'digits' and also my.npz; give one"),
        (["train", "digits", "--set", "data.dataset=fsdd"], "The data are 'digits' and also fsdd; give one"),
        (["train", "--seed", str(2**63)], "training.seed is 9223372036854775808; wanted 0 to 4611686018427387904"),
        (["train", "--threads", "100000"], "training.threads is 100000; wanted 1 to 1024"),
        (
            ["analyze", "x", "--picture", "a.xyz"],
            "--picture is a.xyz; wanted a file whose name ends in .png, .pdf, .svg",
        ),
        (["analyze", "x", "--picture", "."], "--picture is .; wanted a file"),
        (["analyze", "x", "--picture", "/dev/null/a.png"], "--picture /dev/null/a.png cannot be made: /dev/null is no"),
        (["bench", "--batch", "1", "--length", "5", "--width", "2", "--order", str(10**16)], "not enough memory"),
        (["bench", "--threads", "100000"], "--threads is 100000; wanted 1 to 1024"),
        (["compress", "missing", "--discard", "0.1"], "neither a checkpoint"),
    ],
)
def test_errors_end_with_2_and_one_message(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_file_where_a_folder_is_wanted_is_one_line(command: Command, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("text")
    result = command("train", "--quiet", "--run", tmp_path / "afile" / "sub", *tiny)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("Error: ")
    assert "afile" in result.err


def test_a_run_folder_in_use_is_refused(command: Command, tiny: list[str], finished: Path) -> None:
    result = command("train", "--run", finished, *tiny)
    assert result.code == 2
    assert f"--resume {finished}" in " ".join(result.err.split())


def test_help_names_the_commands_and_the_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "compressm", "--help"], capture_output=True, text=True, check=True)
    for name in ("train", "analyze", "compress", "eval"):
        assert name in done.stdout
    done = subprocess.run([sys.executable, "-m", "compressm", "eval", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: nowhere is neither")
