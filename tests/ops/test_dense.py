from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.ops import dense_lti, dense_reference
from compressm.ops.scan import matrix_scan


def dense_system(order: int, inputs: int, outputs: int, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(order)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    a = torch.linalg.qr(normal(order, order)).Q if order else normal(0, 0)
    return radius * a, normal(order, inputs) / 4, normal(outputs, order) / 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("batch", "length", "inputs", "outputs", "order"),
    [(1, 1, 1, 1, 1), (2, 1, 3, 2, 5), (3, 97, 4, 2, 7), (2, 64, 1, 3, 16), (2, 131, 3, 3, 40), (1, 50, 8, 8, 2)],
)
def test_agrees_with_the_reference(signal, batch, length, inputs, outputs, order, dtype) -> None:
    system, u = dense_system(order, inputs, outputs, 0.97), signal(batch, length, inputs)
    weight, feedthrough = signal(batch, length, outputs, seed=3), signal(1, outputs, inputs, seed=4)[0]

    def run(function, kind: torch.dtype) -> list[Tensor]:
        leaves = [t.to(kind).requires_grad_() for t in (*system, u, feedthrough)]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad((y * weight.to(kind)).sum(), leaves)]

    def blocks(a: Tensor, b: Tensor, c: Tensor, u: Tensor, d: Tensor) -> Tensor:
        return dense_lti(a, b, c, u, feedthrough=d)

    def reference(a: Tensor, b: Tensor, c: Tensor, u: Tensor, d: Tensor) -> Tensor:
        return dense_reference(a, b, c, u) + u @ d.mT

    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for got, wanted in zip(run(blocks, dtype), run(reference, torch.float64), strict=True):
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1)


def test_gradients_are_those_of_finite_differences(signal) -> None:
    leaves = [t.requires_grad_() for t in dense_system(3, 2, 2, 0.9)]
    assert torch.autograd.gradcheck(dense_lti, (*leaves, signal(2, 9, 2).requires_grad_()))


@pytest.mark.parametrize("matrix", ["zero", "nilpotent", "identity"])
def test_special_state_matrices(signal, matrix) -> None:
    a = {"zero": torch.zeros(3, 3), "nilpotent": torch.diag(torch.ones(2), 1), "identity": torch.eye(3)}[matrix]
    _, b, c = dense_system(3, 2, 2, 1.0)
    leaf, u = a.double().requires_grad_(), signal(2, 100, 2)
    y = dense_lti(leaf, b, c, u)
    assert (y - dense_reference(a.double(), b, c, u)).abs().max() <= 1e-11 * y.abs().max()
    (grad,) = torch.autograd.grad(y.square().sum(), leaf)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("shape", [(0, 5, 2), (3, 0, 2)])
def test_empty(shape) -> None:
    system = dense_system(3, 2, 4, 0.9)
    u = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y = dense_lti(*system, u)
    assert y.shape == (*shape[:2], 4)
    y.sum().backward()


def test_no_states(signal) -> None:
    assert torch.equal(dense_lti(*dense_system(0, 2, 3, 1.0), signal(2, 6, 2)), torch.zeros(2, 6, 3).double())


@pytest.mark.parametrize("steps", [2, 8, 9, 16, 17, 33, 100])
def test_a_scan_agrees_with_a_loop_and_its_gradients(signal, steps: int) -> None:
    a = 0.9 * dense_system(4, 1, 1, 1.0)[0] + 0.1 * signal(1, 4, 4, seed=5)[0]
    leaves = [signal(3, steps, 4).requires_grad_(), a.requires_grad_()]

    def loop(drive: Tensor, a: Tensor) -> Tensor:
        states = [torch.zeros(3, 4, dtype=torch.float64)]
        for piece in drive.unbind(1)[:-1]:
            states.append(states[-1] @ a.mT + piece)
        return torch.stack(states, 1)

    weight, found = signal(3, steps, 4, seed=7), []
    for function in (matrix_scan, loop):
        y = function(*leaves)
        found.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_sequences_of_a_scan_do_not_touch(signal) -> None:
    drive, a = signal(2, 40, 3), dense_system(3, 1, 1, 1.0)[0]
    alone = matrix_scan(drive[1:], a)
    drive[0] = torch.nan
    assert torch.equal(matrix_scan(drive, a)[1:], alone)


def test_shapes_that_do_not_fit_are_named(signal) -> None:
    a, b, c = dense_system(3, 2, 2, 0.9)
    with pytest.raises(InvalidSystemError, match=r"b \(3, 2\).*u \(2, 6, 5\)"):
        dense_lti(a, b, c, signal(2, 6, 5))
    with pytest.raises(InvalidSystemError, match=r"feedthrough \(H_out, H_in\); found \(3, 2\)"):
        dense_lti(a, b, c, signal(2, 6, 2), feedthrough=b)
