"""Banks with dense state matrices against the plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.layers import LSSL
from compressm.ops import dense_bank_response


def system(dtype: torch.dtype, order: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((3, order, order), *[(3, order)] * 2)
    )
    return 0.9 * a / torch.linalg.matrix_norm(a, 2)[:, None, None], b, c


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values_and_gradients_are_those_of_the_loop(length, dtype) -> None:
    parameters = [x.requires_grad_() for x in system(dtype)]
    a, x, c = parameters
    outputs = []
    for _ in range(length):
        outputs.append((c * x).sum(-1).real)
        x = (a @ x.unsqueeze(-1)).squeeze(-1)
    found, wanted = dense_bank_response(*parameters, length), torch.stack(outputs, -1)
    assert torch.allclose(found, wanted, atol=1e-13)
    weight = torch.randn(3, length, dtype=torch.float64)
    gradients = (torch.autograd.grad(k, parameters, weight, materialize_grads=True) for k in (found, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("length", [512, 16384])
@torch.no_grad()
def test_single_precision_keeps_its_digits_over_any_length(length) -> None:
    """To that of weights rounded to float32: squaring the matrix itself would lose a digit for each factor of ten."""
    layer = LSSL(4, 32, generator=torch.Generator().manual_seed(0))
    a, b = layer.sampled()
    wanted = dense_bank_response(a, b, layer.C.double(), length)
    found = dense_bank_response(a, b.float(), layer.C, length)
    assert found.dtype == torch.float32
    assert ((found - wanted).abs().amax(1) <= 1e-5 * wanted.abs().amax(1)).all()


def test_nothing_to_compute() -> None:
    a, b, c = system(torch.float64)
    assert dense_bank_response(a, b, c, 0).shape == (3, 0)
    assert torch.equal(dense_bank_response(a[:, :0, :0], b[:, :0], c[:, :0], 4), torch.zeros(3, 4).double())
