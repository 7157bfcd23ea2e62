from __future__ import annotations

import pytest

from compressm.ops import Form, choose_form
from compressm.ops.chunked import block_length
from compressm.ops.convolution import good_size
from compressm.ops.dense import dense_block_length


@pytest.mark.parametrize("training", [False, True])
def test_narrow_layers_convolve_and_wide_ones_recur(training) -> None:
    assert choose_form(50, 784, 8, 8, 256, training) is Form.CONVOLUTION  # sequential MNIST
    assert choose_form(50, 1024, 512, 512, 384, training) is Form.CHUNKED  # sequential CIFAR
    assert choose_form(50, 1024, 512, 512, 57, training) is Form.CHUNKED


def test_every_shape_has_a_form() -> None:
    for batch in (0, 1, 7):
        for length in (0, 1, 100):
            for order in (0, 1, 64):
                assert choose_form(batch, length, 3, 2, order, True) in Form


@pytest.mark.parametrize("minimum", [1, 2, 3, 11, 97, 1567, 32767, 100003])
def test_good_sizes_are_even_smooth_and_least(minimum) -> None:
    def smooth(n: int) -> bool:
        for p in (2, 3, 5, 7):
            while n % p == 0:
                n //= p
        return n == 1

    size = good_size(minimum)
    assert size >= minimum
    assert size % 2 == 0
    assert smooth(size)
    assert not any(smooth(n) for n in range(max(2, minimum + minimum % 2), size, 2))


def test_blocks_are_at_least_one_step_and_at_most_the_sequence() -> None:
    for length in (1, 5, 10_000):
        for batch, order in ((1, 0), (1, 1), (64, 4096)):
            assert 1 <= block_length(batch, order, length, 4) <= length
            assert 1 <= dense_block_length(length, 8, order) <= length
