"""Activation, linear map, gate and skip connection as one operation, against its parts and against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from compressm.ops import kernels_run
from compressm.ops.pointwise import gate_dropout, gelu_linear
from compressm.ops.tail import dense, gelu_gate

needs_kernels = pytest.mark.skipif(not kernels_run(), reason="numba is not installed")


def operands(inputs: int, outputs: int, *positions: int) -> list[torch.Tensor]:
    """x, skip, weight, bias and a gradient of the output, channels first, in float64."""
    generator = torch.Generator().manual_seed(inputs + 7 * outputs)
    shapes = (inputs, *positions), (outputs, *positions), (2 * outputs, inputs), (2 * outputs,), (outputs, *positions)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def plain(x: torch.Tensor, skip: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    both = torch.einsum("oi,i...->o...", weight, functional.gelu(x)) + bias.view(-1, *[1] * (x.ndim - 1))
    return skip + functional.glu(both, dim=0)


@settings(max_examples=30, deadline=None)
@given(inputs=st.integers(1, 70), outputs=st.integers(1, 20), length=st.integers(1, 130), batch=st.integers(1, 40))
def test_output_and_all_gradients_of_any_shape(inputs, outputs, length, batch) -> None:
    """In float64, which is plain torch, and in float32, which is compiled where kernels run and the block is narrow."""
    *leaves, grad = operands(inputs, outputs, length, batch)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        exact = [t.clone().requires_grad_() for t in leaves]
        wanted = plain(*exact)
        expected = torch.autograd.grad(wanted, exact, grad)
        given_ = [t.to(dtype).requires_grad_() for t in leaves]
        got = gelu_gate(*given_, 0.0, True)
        assert got.dtype == dtype
        assert (got - wanted).norm() <= tolerance * wanted.norm()
        for found, gradient in zip(torch.autograd.grad(got, given_, grad.to(dtype)), expected, strict=True):
            assert (found - gradient).norm() <= tolerance * (1 + gradient.norm())


@pytest.mark.parametrize("channels_first", [True, False])
def test_gradients_are_those_of_finite_differences(channels_first) -> None:
    x, skip, weight, bias, _ = operands(3, 2, 4)
    x, skip = (x, skip) if channels_first else (x.mT.contiguous(), skip.mT.contiguous())
    leaves = [t.requires_grad_() for t in (x, skip, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: gelu_gate(*t, 0.0, channels_first), leaves)


@needs_kernels
@pytest.mark.parametrize("inputs", [8, 5, 64])
def test_the_same_choices_as_its_parts(inputs) -> None:
    """Bits of the output and of dropout's choices; gradients to within rounding."""
    single = [t.float().requires_grad_() for t in operands(inputs, inputs, 40, 61)]
    *leaves, grad = single
    torch.manual_seed(5)
    got = gelu_gate(*leaves, 0.3, True)
    torch.manual_seed(5)
    x, skip, weight, bias = leaves
    wanted = gate_dropout(gelu_linear(x, weight, bias, 0.3, True), skip, 0.3, True)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(got == skip, wanted == skip)
    expected = torch.autograd.grad(wanted, leaves, grad.detach())
    for found, gradient in zip(torch.autograd.grad(got, leaves, grad.detach()), expected, strict=True):
        assert (found - gradient).norm() <= 3e-6 * gradient.norm()


@needs_kernels
def test_only_its_inputs_are_stored() -> None:
    x, skip, weight, bias, _ = (t.float().requires_grad_() for t in operands(8, 8, 20, 33))
    stored: list[int] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        stored.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        gelu_gate(x, skip, weight, bias, 0.1, True)
    assert set(stored) == {x.data_ptr(), weight.data_ptr(), bias.data_ptr()}


@needs_kernels
def test_one_thread_and_many_give_the_same_bits() -> None:
    single = [t.float().requires_grad_() for t in operands(8, 8, 300, 50)]
    *leaves, grad = single
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            y = gelu_gate(*leaves, 0.1, True)
            results.append((y, *torch.autograd.grad(y, leaves, grad.detach())))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
def test_what_is_not_a_number_is_not_hidden() -> None:
    x, skip, weight, bias, grad = (t.float() for t in operands(4, 4, 50))
    x[2, 17] = float("nan")
    x.requires_grad_()
    y = gelu_gate(x, skip, weight, bias, 0.0, True)
    assert y.isnan().any(0).nonzero().tolist() == [[17]]
    (found,) = torch.autograd.grad(y, x, grad)
    assert found.isnan().any(0).nonzero().tolist() == [[17]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (2, 0, 1)])
def test_expanded_tensors_are_made_dense(order) -> None:
    for x in (
        torch.randn(5, 1, 3).expand(5, 4, 3),
        torch.randn(1).expand(2, 3, 4),
        torch.randn(0, 1, 2).expand(0, 3, 2),
    ):
        view = x.permute(order)
        assert dense(view).is_contiguous()
        assert torch.equal(dense(view), view)
