"""Every form of the diagonal recurrence gives what the step-by-step reference gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.ops import Form, diagonal_lti, kernels_run, recurrence

FAST = [Form.CONVOLUTION, Form.CHUNKED]
DOUBLE = [Form.REFERENCE, *FAST]
SINGLE = [*DOUBLE, Form.LANES] if kernels_run() else DOUBLE
SHAPES = [  # batch, length, inputs, outputs, order
    (1, 1, 1, 1, 1),
    (2, 1, 3, 2, 5),
    (1, 2, 2, 2, 1),
    (3, 97, 4, 2, 7),
    (2, 128, 1, 3, 16),
    (2, 131, 3, 3, 6),
    (1, 300, 2, 2, 4),
    (2, 290, 8, 3, 4),
]


def outputs_and_gradients(parameters: tuple[Tensor, ...], u: Tensor, form: Form, weight: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (*parameters, u)]
    y = diagonal_lti(*leaves[:-1], leaves[-1], form=form)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float64(make_system, signal, shape, form) -> None:
    batch, length, inputs, outputs, order = shape
    parameters, u = make_system(order, inputs, outputs), signal(batch, length, inputs)
    weight = signal(batch, length, outputs, seed=2)
    wanted = outputs_and_gradients(parameters, u, Form.REFERENCE, weight)
    for got, expected in zip(outputs_and_gradients(parameters, u, form, weight), wanted, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_wide_steps_run_one_by_one_with_the_same_result(make_system, signal, monkeypatch, shape) -> None:
    monkeypatch.setattr(recurrence, "_WIDE", 1)
    batch, length, inputs, outputs, order = shape
    parameters, u = make_system(order, inputs, outputs), signal(batch, length, inputs)
    weight = signal(batch, length, outputs, seed=2)
    wanted = outputs_and_gradients(parameters, u, Form.REFERENCE, weight)
    for got, expected in zip(outputs_and_gradients(parameters, u, Form.CHUNKED, weight), wanted, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float32(make_system, signal, shape, form) -> None:
    batch, length, inputs, outputs, order = shape
    parameters, u = make_system(order, inputs, outputs), signal(batch, length, inputs)
    weight = signal(batch, length, outputs, seed=2)
    wanted = outputs_and_gradients(parameters, u, Form.REFERENCE, weight)
    single = (*parameters[:2], *(t.float() for t in parameters[2:]))
    for got, expected in zip(outputs_and_gradients(single, u.float(), form, weight.float()), wanted, strict=True):
        assert (got.double() - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("form", FAST)
def test_gradients_are_those_of_finite_differences(make_system, signal, form) -> None:
    leaves = [t.requires_grad_() for t in make_system(3, 2, 2, radius=(0.5, 0.9))]
    u, d = signal(2, 7, 2).requires_grad_(), signal(2, seed=3).requires_grad_()

    def run(*tensors: Tensor) -> Tensor:
        return diagonal_lti(*tensors[:-1], form=form, feedthrough=tensors[-1])

    assert torch.autograd.gradcheck(run, (*leaves, u, d))


@pytest.mark.parametrize("form", DOUBLE)
def test_feedthrough_is_added(make_system, signal, form) -> None:
    parameters, u, d = make_system(4, 3, 3), signal(2, 20, 3), signal(3, seed=5)
    plain = diagonal_lti(*parameters, u, form=form)
    assert torch.allclose(diagonal_lti(*parameters, u, form=form, feedthrough=d), plain + d * u, atol=1e-12)


@pytest.mark.parametrize("form", DOUBLE)
@pytest.mark.parametrize("shape", [(0, 5, 2), (3, 0, 2)])
def test_empty_batch_and_empty_sequence(make_system, form, shape) -> None:
    leaves = [t.requires_grad_() for t in make_system(4, 2, 3)]
    u = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y = diagonal_lti(*leaves, u, form=form)
    assert y.shape == (*shape[:2], 3)
    y.sum().backward()
    assert u.grad is not None
    assert u.grad.shape == shape


@pytest.mark.parametrize("form", SINGLE)
def test_no_states_give_the_feedthrough_alone(signal, form) -> None:
    empty, b, c = torch.zeros(0), torch.zeros(0, 2), torch.zeros(2, 0)
    u, d = signal(3, 9, 2, dtype=torch.float32), torch.tensor([2.0, -1.0])
    assert torch.allclose(diagonal_lti(empty, empty, b, b, c, c, u, form=form), torch.zeros_like(u))
    assert torch.allclose(diagonal_lti(empty, empty, b, b, c, c, u, form=form, feedthrough=d), d * u, atol=1e-6)


@pytest.mark.parametrize("form", FAST)
def test_any_memory_layout_of_the_input(make_system, signal, form) -> None:
    parameters, u = make_system(5, 3, 3), signal(2, 40, 3)
    wanted = diagonal_lti(*parameters, u, form=form)
    channel_first = u.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided = signal(2, 80, 3)[:, ::2].copy_(u)
    assert torch.allclose(diagonal_lti(*parameters, channel_first, form=form), wanted, atol=1e-12)
    assert torch.allclose(diagonal_lti(*parameters, strided, form=form), wanted, atol=1e-12)


@pytest.mark.parametrize("form", FAST)
def test_gradient_of_the_input_alone(make_system, signal, form) -> None:
    parameters, u = make_system(4, 2, 2), signal(2, 30, 2).requires_grad_()
    weight = signal(2, 30, 2, seed=4)
    (grad,) = torch.autograd.grad((diagonal_lti(*parameters, u, form=form) * weight).sum(), u)
    (wanted,) = torch.autograd.grad((diagonal_lti(*parameters, u, form=Form.REFERENCE) * weight).sum(), u)
    assert torch.allclose(grad, wanted, atol=1e-11)


@pytest.mark.parametrize("form", SINGLE[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(make_system, signal, form, dtype) -> None:
    parameters, u = make_system(8, 2, 2, dtype=torch.float32), signal(2, 200, 2, dtype=dtype)
    y = diagonal_lti(*parameters, u, form=form)
    assert y.dtype == dtype
    assert torch.equal(y, diagonal_lti(*parameters, u.float(), form=form).to(dtype))


@pytest.mark.parametrize("form", SINGLE[1:])
def test_autocast_does_not_reach_the_recurrence(make_system, signal, form) -> None:
    parameters, u = make_system(8, 2, 2, dtype=torch.float32), signal(2, 200, 2, dtype=torch.float32)
    wanted = diagonal_lti(*parameters, u, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = diagonal_lti(*parameters, u, form=form)
    assert torch.equal(got, wanted)


def test_shapes_that_do_not_fit_are_named(make_system, signal) -> None:
    nu, theta, b_re, b_im, c_re, c_im = make_system(4, 2, 3)
    u = signal(2, 10, 2)
    with pytest.raises(InvalidSystemError, match=r"found nu \(4,\).*u \(2, 10, 5\)"):
        diagonal_lti(nu, theta, b_re, b_im, c_re, c_im, signal(2, 10, 5))
    with pytest.raises(InvalidSystemError, match=r"theta \(3,\)"):
        diagonal_lti(nu, theta[:3], b_re, b_im, c_re, c_im, u)
    with pytest.raises(InvalidSystemError, match="feedthrough"):
        diagonal_lti(nu, theta, b_re, b_im, c_re, c_im, u, feedthrough=torch.zeros(2, dtype=torch.float64))
