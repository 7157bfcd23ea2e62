"""A user's own arrays."""

from pathlib import Path

import numpy as np
import pytest

from compressm.data import Task, load_npz
from compressm.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 12, 3))
CLASSES = np.arange(40) % 4
VALUES = np.random.default_rng(1).normal(size=(40, 2)) * 10 + 5


def _save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "my.npz"
    np.savez(path, **arrays)
    return path


def test_classes(tmp_path: Path) -> None:
    dataset = load_npz(_save(tmp_path, X=X, y=CLASSES))
    assert (dataset.name, dataset.task, dataset.channels, dataset.outputs) == ("my", Task.CLASSIFY, 3, 4)
    cases = np.concatenate([split.x.values for split in dataset.splits()])
    assert sorted(map(tuple, cases.reshape(40, -1).tolist())) == sorted(map(tuple, X.reshape(40, -1).tolist()))
    assert [split.cases for split in dataset.splits()] == [29, 5, 6]


def test_values_are_standardised_and_the_scale_is_kept(tmp_path: Path) -> None:
    dataset = load_npz(_save(tmp_path, X=X[:, :, 0], y=VALUES))
    assert (dataset.task, dataset.channels, dataset.outputs) == (Task.REGRESS, 1, 2)
    assert dataset.target_normalisation is not None
    np.testing.assert_allclose(dataset.target_normalisation.apply(dataset.train.y).std(axis=0), 1, rtol=1e-4)


def test_ragged(tmp_path: Path) -> None:
    lengths = np.arange(1, 21)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.arange(offsets[-1], dtype=float)[:, None]
    dataset = load_npz(_save(tmp_path, X=flat, offsets=offsets, y=np.arange(20) % 2))
    assert dataset.ragged
    found = sorted(int(n) for split in dataset.splits() for n in split.x.lengths)
    assert found == lengths.tolist()


def test_a_given_test_split_is_used_as_it_is(tmp_path: Path) -> None:
    dataset = load_npz(_save(tmp_path, X=X, y=CLASSES, X_test=X[:7] + 1, y_test=CLASSES[:7]))
    np.testing.assert_array_equal(dataset.test.x.values, X[:7] + 1)
    assert dataset.train.cases + dataset.validation.cases == 40


def test_integers_of_any_width_are_classes_and_32_bit_floats_are_values(tmp_path: Path) -> None:
    assert load_npz(_save(tmp_path, X=X, y=CLASSES.astype(np.uint8))).task is Task.CLASSIFY
    assert load_npz(_save(tmp_path, X=X, y=CLASSES.astype(np.float32))).task is Task.REGRESS


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X}, "no array y; found X"),
        ({"y": CLASSES}, "no array X"),
        ({"X": X, "y": CLASSES, "labels": CLASSES}, "holds labels; known arrays are"),
        ({"X": X, "y": CLASSES[:-1]}, "y has shape \\(39,\\) for 40 sequences"),
        ({"X": X[0, 0], "y": CLASSES}, "wanted \\(cases, L, channels\\)"),
        ({"X": np.where(X > 3, np.nan, np.inf), "y": CLASSES}, "NaN or infinite"),
        ({"X": X * 1e300, "y": CLASSES}, "range of single precision"),
        ({"X": X, "y": np.where(VALUES > 5, np.nan, 1.0)}, "y has .* NaN"),
        ({"X": X, "y": CLASSES - 1}, "class -1; classes are counted from 0"),
        ({"X": X, "y": np.zeros(40, dtype=int)}, "one class only"),
        ({"X": X, "y": np.where(CLASSES == 2, 7, CLASSES)}, "no training case has class 2"),
        ({"X": X, "y": CLASSES[:, None]}, "wanted classes \\(cases,\\)"),
        ({"X": X, "y": CLASSES.astype(str)}, "wanted integers \\(classes\\) or floats"),
        ({"X": X, "y": np.zeros((40, 11, 2))}, "a target for each step needs"),
        ({"X": X.reshape(-1, 3), "y": CLASSES, "offsets": np.array([0, 480])}, r"\(40,\) for 1 sequences"),
        ({"X": X.reshape(-1, 3), "y": CLASSES[:1], "offsets": np.array([0.0, 480.0])}, "wanted integers"),
        ({"X": X.astype(str), "y": CLASSES}, "wanted real numbers"),
        ({"X": X, "y": CLASSES, "X_test": X[:, :, :1], "y_test": CLASSES}, "X_test has 1 channels, X has 3"),
        ({"X": X, "y": CLASSES, "X_test": X, "y_test": VALUES}, "wanted the same kind"),
        ({"X": X, "y": CLASSES, "X_test": X}, "no array y_test"),
        ({"X": X[:1], "y": CLASSES[:1]}, "cannot be split"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_npz(_save(tmp_path, **arrays))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    ragged = np.array([np.zeros(3), np.zeros(4)], dtype=object)
    path = tmp_path / "objects.npz"
    np.savez(path, X=ragged, y=np.array([0, 1]))
    with pytest.raises(DataError, match=r"without unpickling.*flat X with offsets"):
        load_npz(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_npz(tmp_path / "missing.npz")
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz cannot be read as a \.npz file: it is no zip archive") as caught:
        load_npz(text)
    assert "pickle" not in str(caught.value)
    single = tmp_path / "single.npy"
    np.save(single, X)
    with pytest.raises(DataError, match="a single array"):
        load_npz(single)
    whole = _save(tmp_path, X=X, y=CLASSES)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        load_npz(cut)


@pytest.mark.parametrize("key", ["y", "y_test"])
def test_a_class_beyond_the_number_of_cases_is_refused_before_anything_is_counted(tmp_path: Path, key: str) -> None:
    labels = CLASSES.copy()
    labels[7] = 10**9
    arrays = {"X": X, "y": CLASSES, "X_test": X, "y_test": CLASSES, key: labels}
    with pytest.raises(DataError, match=f"{key} has the class 1000000000, but there are 40 .*classes 0, 1, ..., K - 1"):
        load_npz(_save(tmp_path, **arrays))
