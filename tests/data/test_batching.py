"""Batches are a function of (seed, step) alone."""

import numpy as np
import pytest
import torch

from compressm.data import Batcher, Dataset, Normalisation, Scaling, Sequences, Split, Task, batch_indices, load_digits
from compressm.data.batching import Place, evaluation_batch, following_indices, steps_per_epoch


def test_an_epoch_goes_through_distinct_cases_and_the_next_through_another_order() -> None:
    steps = steps_per_epoch(103, 10)
    first = np.concatenate([batch_indices(103, 10, 5, step) for step in range(steps)])
    second = np.concatenate([batch_indices(103, 10, 5, step) for step in range(steps, 2 * steps)])
    assert len(first) == 100
    assert len(set(first)) == 100
    assert first.tolist() != second.tolist()


def test_batches_can_be_made_in_any_order_and_differ_by_seed() -> None:
    forwards = [batch_indices(50, 8, 0, step).tolist() for step in range(20)]
    backwards = [batch_indices(50, 8, 0, step).tolist() for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [batch_indices(50, 8, 1, step).tolist() for step in range(20)]


@pytest.mark.parametrize(("cases", "size"), [(103, 10), (100, 10), (7, 50)])
def test_batches_that_follow_each_other_are_those_of_the_steps(cases, size) -> None:
    place = Place()
    for step in range(30):
        found, place = following_indices(cases, size, 4, place)
        assert found.tolist() == batch_indices(cases, size, 4, step).tolist()


def test_batches_of_changing_size_take_no_case_of_an_epoch_twice() -> None:
    place, taken = Place(), {}
    for size in (10, 10, 25, 30, 30, 40, 90, 100, 103):
        found, place = following_indices(103, size, 4, place)
        assert len(found) == size
        taken.setdefault(place.epoch, []).extend(found.tolist())
    assert all(len(set(cases)) == len(cases) for cases in taken.values())
    assert [len(cases) for cases in taken.values()] == [75, 70, 90, 100, 103]


def test_changing_the_indices_of_a_batch_changes_no_other() -> None:
    indices = batch_indices(50, 8, 0, 2)
    before = indices.tolist()
    indices[:] = -1
    assert batch_indices(50, 8, 0, 2).tolist() == before


@pytest.mark.parametrize(
    ("length", "width", "wanted"), [(784, 8, 334), (1024, 512, 4), (10**6, 512, 1), (64, 8, 1000), (0, 8, 1000)]
)
def test_an_evaluation_batch_is_as_large_as_the_caches_allow(length, width, wanted) -> None:
    assert evaluation_batch(length, width) == wanted


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    assert sorted(batch_indices(7, 50, 0, 3)) == list(range(7))


def test_a_training_batch_is_the_same_bits_again_and_normalised() -> None:
    dataset = load_digits()
    one, two = Batcher(dataset, 32, 1).training(40), Batcher(dataset, 32, 1).training(40)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.y, two.y)
    assert one.x.shape == (32, 64, 1)
    assert one.lengths is None
    indices = batch_indices(dataset.train.cases, 32, 1, 40)
    wanted = (dataset.train.x.values[indices] - dataset.normalisation.shift[0]) / dataset.normalisation.scale[0]
    np.testing.assert_allclose(one.x.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_in_order_goes_through_every_case_once() -> None:
    dataset = load_digits()
    batches = list(Batcher(dataset, 32, 1).in_order(dataset.test, 100))
    assert [len(batch.y) for batch in batches] == [100, 100, 70]
    assert torch.cat([batch.y for batch in batches]).tolist() == dataset.test.y.tolist()


def test_ragged_sequences_are_padded_with_zeros_after_normalisation() -> None:
    batch = next(Batcher(_ragged(), 3, 0).in_order(_ragged().test, 3))
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [1, 3, 2]
    assert batch.x.shape == (3, 3, 1)
    assert batch.x[:, :, 0].tolist() == [[-1, 0, 0], [0, 1, 2], [3, 4, 0]]


def test_targets_are_normalised_where_values_are_predicted() -> None:
    batch = next(Batcher(_ragged(), 3, 0).in_order(_ragged().test, 3))
    assert batch.y.tolist() == [[0.0], [0.5], [1.0]]


def _ragged() -> Dataset:
    x = Sequences(np.arange(6.0)[:, None], np.array([0, 1, 4, 6]))
    split = Split(x, np.array([[1.0], [2.0], [3.0]], dtype=np.float32))
    return Dataset(
        "ragged", Task.REGRESS, split, split, split, Normalisation((1.0,), (1.0,)), (), Normalisation((1.0,), (2.0,))
    )


def test_a_ragged_data_set_says_so_and_knows_its_longest_sequence() -> None:
    assert _ragged().ragged
    assert _ragged().max_length == 3
    assert not load_digits(Scaling.NONE).ragged
