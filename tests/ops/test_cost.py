from __future__ import annotations

import math

import pytest

from compressm.errors import ConfigError
from compressm.ops import CostTable, Form, Machine, Shape, choose_form, explain_cost, kernels_run
from compressm.ops.blocks import block_length
from compressm.ops.convolution import good_size
from compressm.ops.dense import dense_block_length
from compressm.ops.measure import FormTime, fit_scales, measure_forms


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


def test_the_choice_depends_on_arguments_and_table_alone() -> None:
    shape = Shape(50, 784, 8, 8, 13, True)
    plain, fast = Machine(2, kernels=False), Machine(2, kernels=True)
    assert CostTable().choose(shape, fast) is Form.LANES
    assert CostTable().choose(shape, plain) in (Form.CONVOLUTION, Form.CHUNKED)
    assert CostTable({"lanes": 100.0}).choose(shape, fast) is not Form.LANES
    assert CostTable().seconds(Form.LANES, shape, plain) == math.inf
    assert CostTable().seconds(Form.REFERENCE, shape, fast) == math.inf


@pytest.mark.parametrize("form", [Form.CONVOLUTION, Form.CHUNKED, Form.LANES])
def test_an_estimate_is_the_sum_of_its_parts_and_grows_with_the_work(form) -> None:
    machine = Machine(1, kernels=True)
    small, large = Shape(20, 100, 4, 4, 8, False), Shape(40, 200, 8, 8, 16, True)
    parts = explain_cost(form, small, machine)
    assert sum(parts.values()) == pytest.approx(CostTable().seconds(form, small, machine))
    assert CostTable().seconds(form, small, machine) < CostTable().seconds(form, large, machine)
    assert CostTable({form.value: 3.0}).seconds(form, small, machine) == pytest.approx(3 * sum(parts.values()))


@pytest.mark.parametrize("scale", [{"quick": 1.0}, {"lanes": 0.0}, {"lanes": math.nan}, {"lanes": "fast"}])
def test_a_table_that_is_none_is_refused(scale) -> None:
    with pytest.raises(ConfigError, match="cost table"):
        CostTable(scale)


@pytest.mark.parametrize("training", [False, True])
def test_measured_forms_are_those_that_run_here(training) -> None:
    found = measure_forms(Shape(3, 20, 2, 3, 4, training), seconds=0.0)
    wanted = {Form.CONVOLUTION, Form.CHUNKED} | ({Form.LANES} if kernels_run() else set())
    assert {one.form for one in found} == wanted
    assert [one.measured for one in found] == sorted(one.measured for one in found)


def test_a_fitted_table_scales_each_form_by_the_median_of_measured_to_estimated_time() -> None:
    machine, forms = Machine(2, False), (Form.CONVOLUTION, Form.CHUNKED)
    shapes = [Shape(batch, 100, 4, 4, 8, True) for batch in (1, 10, 100)]

    def timed(shape: Shape, form: Form, factor: float) -> FormTime:
        return FormTime(form, 1.0, factor * CostTable().seconds(form, shape, machine))

    found = {
        shape: [timed(shape, Form.CONVOLUTION, factor), timed(shape, Form.CHUNKED, 2.0)]
        for shape, factor in zip(shapes, (3.0, 100.0, 5.0), strict=True)
    }
    scale = fit_scales(found, machine).scale
    assert set(scale) == {form.value for form in forms}
    assert scale["convolution"] == pytest.approx(5.0) and scale["chunked"] == pytest.approx(2.0)
