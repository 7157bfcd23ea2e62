"""Sets of the UCR and UEA archives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from compressm.data import load_dataset
from compressm.errors import DataError

HEADER = "# a comment\n@problemName Two\n@univariate false\n@classLabel true b a\n@data\n"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six training and four test cases of three steps, two channels, two classes."""
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "ucr" / "Two"
    folder.mkdir(parents=True)
    for part, cases in (("TRAIN", 10), ("TEST", 4)):
        rows = [f"{i},{i}.5,-1e-1:0,1,{i}:{'ba'[i % 2]}\n" for i in range(cases)]
        (folder / f"Two_{part}.ts").write_text(HEADER + "".join(rows) + "\n")
    return folder


def test_text_files(archive: Path) -> None:
    dataset = load_dataset("ucr:Two")
    assert (dataset.name, dataset.class_names, dataset.channels) == ("ucr-Two", ("a", "b"), 2)
    assert [split.cases for split in dataset.splits()] == [8, 2, 4]
    np.testing.assert_allclose(dataset.test.x.values[3], [[3, 0], [3.5, 1], [-0.1, 3]], rtol=1e-6)
    assert dataset.test.y.tolist() == [1, 0, 1, 0]


def test_packed_goes_first(archive: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 5, 1)).astype(np.float32)
    y = np.arange(10) % 2
    np.savez(archive.parent / "Two.npz", X_train=x, y_train=y, X_test=x, y_test=y, class_names=np.array(["u", "v"]))
    assert load_dataset("ucr:Two").class_names == ("u", "v")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": np.arange(10) % 3}, "ucr-Two, test split: a case has the class 2; wanted 0 to 1"),
        ({"y_train": np.array(["u", "v"] * 5)}, r"Two\.npz: y_train is <U1 .*wanted integers"),
        ({"X_test": np.zeros((10, 5))}, r"Two\.npz, X_test / y_test: .*wanted \(cases, L, channels\)"),
        ({"X_test": np.zeros((10, 5, 2))}, "2 channels; wanted 1"),
        ({"class_names": np.array("u")}, "wanted one name a class"),
    ],
)
def test_what_is_wrong_in_a_packed_set_is_said(changed: dict, message: str, archive: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(10, 5, 1)), np.arange(10) % 2
    sound = {"X_train": x, "y_train": y, "X_test": x, "y_test": y, "class_names": np.array(["u", "v"])}
    np.savez(archive.parent / "Two.npz", **{**sound, **changed})
    with pytest.raises(DataError, match=message):
        load_dataset("ucr:Two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2:a\n", "no line @data"),
        (HEADER + "1,?,3:0,1,2:a\n", "line 6: .*missing values"),
        (HEADER + "1,nan,3:0,1,2:a\n", "line 6: wanted finite values"),
        (HEADER + "1,2,3:0,1,2:a\n1,2:0,1:b\n", "line 7: a sequence of 2 steps, but 3 in the first case; .*offsets"),
        (HEADER + "1,2,3:0,1:a\n", "line 6: a sequence of 2 steps, but 3"),
        (HEADER + "1,2,3:0,1,2:a\n# none\n1,2,3:b\n", "line 8: 1 channels, but 2 in the first case"),
        (HEADER + "a\n", "line 6"),
        (HEADER + "\n# nothing\n", "no case after the line @data"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, archive: Path) -> None:
    (archive / "Two_TRAIN.ts").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset("ucr:Two")


def test_what_is_missing_is_said(archive: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)'ucr:Three' was not found.*Three_TRAIN\.ts.*timeseriesclassification"):
        load_dataset("ucr:Three")
    with pytest.raises(DataError, match="names no data set"):
        load_dataset("ucr:../x")
    (archive / "Two_TEST.ts").unlink()
    with pytest.raises(DataError, match=r"Two_TEST\.ts is missing"):
        load_dataset("ucr:Two")


@pytest.mark.skipif(
    not (Path(os.environ.get("COMPRESSM_DATA", "/nowhere")) / "uea_ucr").is_dir(), reason="needs COMPRESSM_DATA/uea_ucr"
)
@pytest.mark.parametrize(("name", "cases"), [("GunPoint", [40, 10, 150]), ("BasicMotions", [32, 8, 40])])
def test_the_real_ones(name: str, cases: list[int]) -> None:
    assert [split.cases for split in load_dataset(f"ucr:{name}").splits()] == cases
