"""Backward passes that are written out: full precision under autocast, second derivatives refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressm.errors import DerivativeError
from compressm.layers import FAMILIES, LayerKind, MaskedBatchNorm
from compressm.ops import bank_lti, dense_bank_response, diagonal_lti, kernels_run, low_rank_response, use_kernels
from compressm.ops.cost import Form
from compressm.ops.pointwise import gelu_dropout
from compressm.ops.scan import matrix_scan

WRITTEN_OUT = [kind for kind in LayerKind if kind is not LayerKind.DENSE]


def loss_gradients(module: nn.Module, u: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    u = u.clone().requires_grad_()
    return torch.autograd.grad(
        module(u).float().square().sum(), [u, *module.parameters()], create_graph=create_graph, allow_unused=True
    )


@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_second_derivatives_are_refused(kind) -> None:
    """Parts of them could be had, by other ways than through these passes: silently wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), FAMILIES[kind].layer(4, 6), nn.Linear(4, 2))
    with pytest.raises(DerivativeError, match="create_graph"):
        loss_gradients(model, torch.randn(2, 20, 4), create_graph=True)


def test_second_derivatives_of_a_batch_norm_are_refused() -> None:
    with pytest.raises(DerivativeError, match="create_graph"):
        loss_gradients(MaskedBatchNorm(4), torch.randn(2, 20, 4), create_graph=True)


def test_second_derivatives_of_a_dense_layer_are_right() -> None:
    torch.manual_seed(0)
    model = FAMILIES[LayerKind.DENSE].layer(2, 3).double()
    u = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(model, (u,))


@pytest.mark.parametrize("steps", [1, 5, 9, 40])
def test_first_and_second_derivatives_of_a_scan_are_right(steps: int) -> None:
    torch.manual_seed(0)
    drive = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    a = (0.5 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(matrix_scan, (drive, a))
    assert torch.autograd.gradgradcheck(matrix_scan, (drive, a))


def test_the_reference_can_be_differentiated_twice(make_system, signal) -> None:
    leaves = [t.requires_grad_() for t in make_system(2, 1, 1, radius=(0.5, 0.9))]
    u = signal(1, 4, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *t: diagonal_lti(*t, form=Form.REFERENCE), (*leaves, u))


def calls(make_system, signal) -> dict[str, tuple[list[Tensor], object]]:
    """Leaves, and functions of them that a written-out backward pass belongs to."""
    single = [t.float() for t in make_system(6, 3, 3)]
    u, bank = signal(18, 40, 3).float(), [*single[:2], *(t[:, :1].mT[0] for t in single[2:4])]
    bank = [t.expand(3, -1).clone() for t in bank]
    columns = [torch.complex(*(signal(3, 6, seed=s + 2 * k).float() for s in (2, 3))) * 0.2 for k in range(4)]
    matrix = signal(3, 6, 6, seed=9).float() * 0.2
    found = {
        form.value: ([*single, u], lambda *t, form=form: diagonal_lti(*t, form=form))
        for form in (Form.CONVOLUTION, Form.CHUNKED, Form.LANES)
        if form is not Form.LANES or kernels_run()
    }
    found["bank"] = ([*bank, u], lambda *t: bank_lti(*t, in_blocks=False))
    found["low rank"] = ([*bank[:2], *columns], lambda *t: low_rank_response(*t, 40))
    found["dense bank"] = ([matrix, *columns[:2]], lambda *t: dense_bank_response(*t, 40))
    found["gelu"] = ([u], lambda t: gelu_dropout(t, 0.0))
    return found


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_under_autocast_is_in_full_precision(make_system, signal, dtype, kernels) -> None:
    use_kernels(kernels)
    try:
        for name, (leaves, function) in calls(make_system, signal).items():
            if name == Form.LANES.value and not kernels:
                continue
            leaves = [t.detach().requires_grad_() for t in leaves]
            wanted = torch.autograd.grad(function(*leaves).square().sum(), leaves)
            with torch.autocast("cpu", dtype):
                found = torch.autograd.grad(function(*leaves).square().sum(), leaves)
            for got, expected in zip(found, wanted, strict=True):
                assert torch.equal(got, expected), name
    finally:
        use_kernels(True)
