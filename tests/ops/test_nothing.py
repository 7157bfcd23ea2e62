"""Empty batches, sequences and layers, and sequences of one step: every parameter has a gradient, of zero or more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressm.layers import FAMILIES, LayerKind
from compressm.ops import Form, diagonal_lti, kernels_run, use_kernels

SIZES = [(0, 5, 4), (2, 0, 4), (2, 1, 4), (20, 5, 0), (0, 1, 0)]  # batch, length, order


def layer(kind: LayerKind, order: int) -> nn.Module:
    options = {"length": 8} if kind is LayerKind.DSS else {}
    return FAMILIES[kind].layer(3, order, **options)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(("batch", "length", "order"), SIZES)
@pytest.mark.parametrize("kind", list(LayerKind))
def test_layers(kind: LayerKind, batch: int, length: int, order: int, kernels: bool) -> None:
    use_kernels(kernels)
    try:
        module, u = layer(kind, order), torch.randn(batch, length, 3, requires_grad=True)
        y = module(u)
        assert y.shape == u.shape and y.dtype == u.dtype
        y.sum().backward()
    finally:
        use_kernels(True)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert batch * length > 0 or not bool(parameter.grad.any()), name
    assert u.grad is not None


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(("batch", "length", "order"), SIZES)
def test_forms(make_system, form: Form, batch: int, length: int, order: int) -> None:
    if form is Form.LANES and not kernels_run():
        pytest.skip("lanes run compiled kernels, which cannot run here (pip install compressm[fast])")
    u, d = torch.randn(batch, length, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    leaves = [t.float().requires_grad_() for t in make_system(order, 3, 3)]
    y = diagonal_lti(*leaves, u, form=form, feedthrough=d)
    assert y.shape == u.shape
    assert all(g is not None for g in torch.autograd.grad(y.sum(), [*leaves, u, d]))
