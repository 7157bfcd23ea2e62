"""The common form of data sets, and its normalisation."""

import numpy as np
import pytest

from compressm.data import DATASETS, Dataset, Normalisation, Scaling, Sequences, Split, Task, load_dataset, load_digits
from compressm.data.splits import holdout
from compressm.errors import DataError


def test_digits_are_the_1797_images_in_disjoint_stratified_splits() -> None:
    from sklearn.datasets import load_digits as raw

    dataset = load_digits(Scaling.NONE)
    rows = [tuple(x) for split in dataset.splits() for x in split.x.values[:, :, 0].tolist()]
    assert sorted(rows) == sorted(tuple(x) for x in raw().data.astype(int).tolist())
    assert [split.cases for split in dataset.splits()] == [1258, 269, 270]
    for split in dataset.splits():
        counts = np.bincount(split.y, minlength=10)
        assert counts.max() - counts.min() <= 0.2 * counts.mean()


def test_the_split_depends_on_its_seed_alone() -> None:
    first, again, other = load_digits(seed=0), load_digits(seed=0), load_digits(seed=1)
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert first.fingerprint() != load_digits(Scaling.UNIT).fingerprint()


def test_normalisation_is_fitted_on_the_training_split_and_applied_per_channel() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 7, 2)) * [1.0, 20.0] + [3.0, -5.0]
    standard = Normalisation.fit(x, Scaling.STANDARD).apply(x)
    np.testing.assert_allclose(standard.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=(0, 1)), 1, rtol=1e-5)
    unit = Normalisation.fit(x, Scaling.UNIT).apply(x)
    np.testing.assert_allclose((unit.min(axis=(0, 1)), unit.max(axis=(0, 1))), ([0, 0], [1, 1]), atol=1e-6)
    np.testing.assert_array_equal(Normalisation.fit(x, Scaling.NONE).apply(x), x.astype(np.float32))
    assert standard.dtype == np.float32


def test_a_constant_channel_is_shifted_and_not_divided_by_zero() -> None:
    x = np.full((3, 4, 1), 7)
    for scaling in (Scaling.STANDARD, Scaling.UNIT):
        np.testing.assert_array_equal(Normalisation.fit(x, scaling).apply(x), 0)


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.zeros((3, 4)), None, "wanted \\(cases, L, channels\\)"),
        (np.zeros((0, 4, 1)), None, "nothing in them"),
        (np.full((2, 3, 1), np.nan), None, "6 values that are NaN"),
        (np.zeros((2, 3, 1), dtype=complex), None, "wanted real numbers"),
        (np.zeros((5, 1)), np.array([0, 2, 4]), "from 0 to 4; wanted 0 to 5"),
        (np.zeros((5, 1)), np.array([0, 2, 2, 5]), "Sequence 1 has no steps"),
        (np.zeros((5, 1)), np.array([0, 4, 2, 5]), "Sequence 1 has no steps"),
        (np.zeros((5, 1)), np.array([0.0, 5.0]), "wanted integers"),
    ],
)
def test_sequences_refuse_what_is_not_sound(values: np.ndarray, offsets: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Sequences(values, offsets)


def test_ragged_cases_are_taken_in_the_order_asked_for() -> None:
    sequences = Sequences(np.arange(6)[:, None], np.array([0, 1, 3, 6]))
    taken = sequences.take(np.array([2, 0]))
    assert taken.values[:, 0].tolist() == [3, 4, 5, 0]
    assert taken.lengths.tolist() == [3, 1]


def test_a_split_needs_one_target_for_each_case() -> None:
    with pytest.raises(DataError, match="3 sequences but 2 targets"):
        Split(Sequences(np.zeros((3, 4, 1))), np.zeros(2, dtype=np.int64))


def test_a_stratified_holdout_takes_the_same_part_of_every_class_and_the_right_number_in_all() -> None:
    y = np.repeat(np.arange(10), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    rest, held = holdout(y, 5000 / 60000, 3, stratify=True)
    assert len(held) == 5000
    assert sorted([*rest, *held]) == list(range(60000))
    assert np.all(np.abs(np.bincount(y[held]) - np.bincount(y) / 12) < 1)


def test_a_holdout_that_would_empty_a_part_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        holdout(np.zeros(1), 0.1, 0, stratify=False)
    with pytest.raises(DataError, match="more than 0 and less than 1"):
        holdout(np.zeros(10), 1.0, 0, stratify=False)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        load_dataset("digit")
    assert DATASETS[:3] == ("digits", "smnist", "fsdd")


def _dataset(task: Task, *parts: tuple[np.ndarray, np.ndarray], washout: int = 0) -> Dataset:
    """Three splits of inputs and targets."""
    splits = [Split(Sequences(x), y) for x, y in parts]
    targets = None if task is Task.CLASSIFY else Normalisation.fit(parts[0][1], Scaling.STANDARD)
    names = ("a", "b", "c") if task is Task.CLASSIFY else ()
    unit = Normalisation.fit(parts[0][0], Scaling.NONE)
    return Dataset("mine", task, *splits, unit, names, targets, washout)


X = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
CLASSES, VALUES = np.arange(6) % 3, X[:, 0, :1]


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        (Task.CLASSIFY, CLASSES, (X[..., :1], CLASSES), "1 channels; wanted 2"),
        (Task.CLASSIFY, CLASSES, (X, CLASSES + 1), "class 3; wanted 0 to 2"),
        (Task.CLASSIFY, CLASSES, (X, CLASSES - 1), "class -1; wanted 0 to 2"),
        (Task.CLASSIFY, CLASSES, (X, CLASSES.astype(np.int32)), "targets are int32 .*wanted classes"),
        (Task.CLASSIFY, CLASSES, (X, VALUES), "wanted classes"),
        (Task.REGRESS, VALUES, (X, CLASSES), "wanted values"),
        (Task.REGRESS, VALUES, (X, X[:, 0]), "2 outputs; wanted 1"),
        (Task.REGRESS, VALUES, (X, VALUES[:, 0]), "wanted values"),
        (Task.REGRESS, VALUES, (X, np.full((6, 1), np.inf)), "6 targets are NaN or infinite"),
        (Task.SEQUENCE, X, (X, VALUES), r"wanted values \(cases, L, outputs\)"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_splits_fit_the_task_and_each_other(
    task: Task, good: np.ndarray, bad: tuple[np.ndarray, np.ndarray], message: str, number: int
) -> None:
    parts = [(X, good)] * 3
    _dataset(task, *parts)
    parts[number] = bad
    with pytest.raises(DataError, match=f"mine, {('training', 'validation', 'test')[number]} split: .*{message}"):
        _dataset(task, *parts)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_output_that_is_constant_where_it_is_scored_is_refused_before_anything_is_trained(number: int) -> None:
    flat = X.copy()
    flat[:, 1:, 1] = 7  # the first step is not scored
    parts = [(X, X)] * 3
    parts[number] = (X, flat)
    _dataset(Task.SEQUENCE, *parts)
    with pytest.raises(DataError, match=rf"mine, {('training', 'validation', 'test')[number]} split: output 1 \("):
        _dataset(Task.SEQUENCE, *parts, washout=1)


def test_a_constant_value_of_a_sequence_is_no_obstacle() -> None:
    _dataset(Task.REGRESS, *[(X, np.ones((6, 1), np.float32))] * 3)  # its error is measured in its own unit
