"""Measured systems, and the simulation error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressm.cli.objective import Objective
from compressm.data import Batcher, Dataset, Normalisation, Scaling, Sequences, Split, Task, load_dataset
from compressm.data.npz import load_npz
from compressm.data.sysid import RECORDS
from compressm.errors import DataError

REAL = Path(os.environ.get("COMPRESSM_DATA", "/nowhere")) / "sysid"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "sysid").mkdir()
    return tmp_path / "sysid"


def tanks(folder: Path, **changed: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{s}_{part}": rng.normal(size=1024) for s in "uy" for part in ("train", "test")}
    np.savez(folder / "cascaded_tanks.npz", **{**arrays, **changed})


def test_two_records(folder: Path) -> None:
    ramp = np.arange(1024.0)
    tanks(folder, u_train=ramp, y_train=-ramp, u_test=ramp + 5000, y_test=ramp)
    dataset = load_dataset("cascaded-tanks", scaling=Scaling.NONE)
    assert dataset.task is Task.SEQUENCE and (dataset.channels, dataset.outputs, dataset.washout) == (1, 1, 50)
    x, y = dataset.train.x.values[..., 0], dataset.train.y[..., 0]
    assert x.shape == (10, 256) and (x[:, 0] == 64 * np.arange(10)).all() and (np.diff(x) == 1).all()
    assert (y == -x).all()
    assert x.max() < 870 == dataset.validation.x.values.min()  # no step is in two splits
    assert dataset.validation.x.values.shape == (1, 154, 1) and dataset.test.x.values.shape == (1, 1024, 1)
    assert dataset.test.x.values.min() == 5000 and dataset.test.y.max() == 1023


def test_one_record_decimated(folder: Path) -> None:
    steps = np.arange(60001.0)
    np.savez(folder / "pick_and_place.npz", u=steps, y=steps)
    dataset = load_dataset("pick-and-place", scaling=Scaling.NONE)
    assert dataset.test.x.values[0, :3, 0].tolist() == [50000, 50010, 50020]
    assert dataset.validation.x.values[0, -1, 0] == 49990


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"u_train": np.full(1024, np.nan)}, "u_train is float64 .*wanted finite"),
        ({"y_test": np.zeros((1024, 1))}, "wanted finite numbers"),
        ({"y_train": np.zeros(1023)}, "u_train has 1024 steps, y_train has 1023 steps; wanted equally many"),
        ({"u_train": np.zeros(900), "y_train": np.zeros(900)}, "y_train has 900 steps; .*at least 1024"),
        ({"u_test": np.zeros(1000)}, "u_test has 1000 steps, y_test has 1024"),
        ({"u_test": np.zeros(200), "y_test": np.zeros(200)}, "y_test has 200 steps; .*at least 256"),
        ({"y_test": np.zeros(1024)}, "cascaded-tanks, test split: output 0 .* is constant"),
    ],
)
def test_what_is_wrong_is_said(changed: dict, message: str, folder: Path) -> None:
    tanks(folder, **changed)
    with pytest.raises(DataError, match=message):
        load_dataset("cascaded-tanks")


def test_what_is_missing_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)cascaded_tanks\.npz.*u_train, y_train, u_test, y_test.*data-sets\.md"):
        load_dataset("cascaded-tanks")
    np.savez(folder / "cascaded_tanks.npz", u_train=np.zeros(3))
    with pytest.raises(DataError, match="has no array u_test, y_test, y_train; found u_train"):
        load_dataset("cascaded-tanks")
    with pytest.raises(DataError, match="Did you mean 'cascaded-tanks'"):
        load_dataset("cascaded-tank")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs COMPRESSM_DATA/sysid")
@pytest.mark.parametrize("name", sorted(RECORDS))
def test_the_real_ones(name: str) -> None:
    dataset = load_dataset(name)
    assert dataset.train.cases >= 10 and dataset.validation.cases == dataset.test.cases == 1
    assert all(split.x.lengths.min() > 2 * dataset.washout for split in dataset.splits())


class Scaled(nn.Module):
    """Returns the first input times a factor; the first steps are nonsense."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y = 0.9 * x
        y[:, :3] = 1e3
        return y


def of_sequences(y: np.ndarray, washout: int) -> Dataset:
    split = Split(Sequences(y), y)
    unit = Normalisation.fit(y, Scaling.STANDARD)
    return Dataset("s", Task.SEQUENCE, split, split, split, unit, (), unit, washout)


def test_the_simulation_error_is_the_textbooks() -> None:
    y = (3 + 2 * np.random.default_rng(0).normal(size=(7, 40, 2))).astype(np.float32)
    dataset = of_sequences(y, washout=3)
    objective = Objective.of(dataset)
    scores = objective.evaluate(Scaled(), Batcher(dataset, 3, 0).in_order(dataset.test))
    normal = dataset.normalisation.apply(y)[:, 3:]
    error, counted = 0.1 * normal, normal
    wanted = np.sqrt((error**2).mean((0, 1))) / counted.std((0, 1))
    assert scores["nrmse"] == pytest.approx(wanted.mean(), rel=1e-5)
    assert scores["fit"] == pytest.approx(100 * (1 - wanted.mean()), rel=1e-5)
    assert scores["rmse"] == pytest.approx(np.sqrt(((error * y.std((0, 1))) ** 2).mean()), rel=1e-4)
    assert scores["loss"] == pytest.approx((error**2).mean(), rel=1e-4)
    batch = next(iter(Batcher(dataset, 7, 0).in_order(dataset.test)))
    assert objective.loss(Scaled(), batch).item() == pytest.approx(scores["loss"], rel=1e-4)
    assert objective.metric == "nrmse" and not objective.higher_is_better


def test_a_small_deviation_far_from_the_mean_of_training_is_a_scale() -> None:
    rng = np.random.default_rng(0)
    training, test = rng.normal(size=(4, 40, 1)), 1e4 + 1e-2 * rng.normal(size=(2, 40, 1))
    unit, test = Normalisation((0.0,), (1.0,)), test.astype(np.float32)
    splits = [Split(Sequences(y.astype(np.float32)), y.astype(np.float32)) for y in (training, training, test)]
    dataset = Dataset("s", Task.SEQUENCE, *splits, unit, (), unit)
    scores = Objective.of(dataset).evaluate(lambda x, _: x + 1, Batcher(dataset, 2, 0).in_order(dataset.test))
    assert scores["nrmse"] == pytest.approx(1 / test.astype(np.float64).std(), rel=1e-9)


def test_a_short_record_says_so(folder: Path) -> None:
    np.savez(folder / "pick_and_place.npz", u=np.arange(60000.0), y=np.arange(60000.0))
    with pytest.raises(DataError, match="u has 60000 steps, y has 60000 steps; wanted equally many, at least 60001"):
        load_dataset("pick-and-place")


@pytest.mark.parametrize("washout", [-1, 40])
def test_a_washout_leaves_steps_to_score(washout: int) -> None:
    with pytest.raises(DataError, match="wanted 0 to 39 steps"):
        of_sequences(np.random.default_rng(0).normal(size=(2, 40, 1)).astype(np.float32), washout)


def test_targets_at_each_step_in_a_users_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 30, 2)).astype(np.float32)
    np.savez(tmp_path / "my.npz", X=x, y=x.cumsum(1)[..., :1])
    dataset = load_npz(tmp_path / "my.npz")
    assert dataset.task is Task.SEQUENCE and (dataset.outputs, dataset.washout) == (1, 0)
    assert Batcher(dataset, 4, 0).training(0).y.shape == (4, 30, 1)
    assert torch.allclose(Batcher(dataset, 99, 0).training(0).y.mean(), torch.zeros(()), atol=1e-5)
    np.savez(tmp_path / "bad.npz", X=x, y=x[:, 1:])
    with pytest.raises(DataError, match="a target for each step needs"):
        load_npz(tmp_path / "bad.npz")
