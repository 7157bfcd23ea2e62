from __future__ import annotations

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import MaskedBatchNorm, MaskedLayerNorm
from compressm.layers.layout import Layout


def lengths_mask(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("layout", [layout.arrange for layout in Layout])
def test_without_padding_it_is_torchs_batch_norm(layout) -> None:
    ours, theirs = MaskedBatchNorm(3).double(), torch.nn.BatchNorm1d(3, affine=False).double()
    for _ in range(3):
        x = torch.randn(4, 9, 3, dtype=torch.float64) * 2 + 5
        got, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(layout(got)), theirs(wanted.mT).mT
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        (z * weight).sum().backward()
        assert torch.allclose(y, z, atol=1e-12)
        assert torch.allclose(got.grad, wanted.grad, atol=1e-12)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-12)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-12)
    ours.eval()
    theirs.eval()
    assert torch.allclose(ours(x), theirs(x.mT).mT, atol=1e-12)


def test_statistics_exclude_padding() -> None:
    mask = lengths_mask(9, 4, 1)
    x = torch.randn(3, 9, 2)
    noisy = torch.where(mask[..., None], x, float("nan"))
    ours, theirs = MaskedBatchNorm(2), torch.nn.BatchNorm1d(2, affine=False)
    y, wanted = ours(noisy, mask), theirs(x[mask])
    assert torch.allclose(y[mask], wanted, atol=1e-5)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MaskedBatchNorm(2).double(), (x,))
    mask = lengths_mask(5, 2, 0)
    assert torch.autograd.gradcheck(lambda x: MaskedBatchNorm(2).double()(x, mask), (x,))


def test_a_large_mean_does_not_cost_digits() -> None:
    x = torch.randn(4, 100, 1)
    assert torch.allclose(MaskedBatchNorm(1)(x + 1000), MaskedBatchNorm(1)(x), atol=5e-3)


def test_a_batch_without_valid_positions_changes_nothing() -> None:
    norm = MaskedBatchNorm(2)
    norm(torch.randn(2, 5, 2), torch.zeros(2, 5, dtype=torch.bool))
    norm(torch.randn(0, 5, 2))
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(norm.running_var, torch.ones(2))


def test_one_valid_position_is_finite() -> None:
    norm = MaskedBatchNorm(2)
    assert torch.isfinite(norm(torch.randn(1, 1, 2))).all()
    assert torch.isfinite(norm.running_var).all()


def test_half_precision_keeps_its_dtype() -> None:
    x = torch.randn(4, 50, 3)
    y = MaskedBatchNorm(3)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), MaskedBatchNorm(3)(x), atol=0.05)


def test_batch_norm_cannot_step_in_training() -> None:
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        MaskedBatchNorm(2).step(torch.zeros(1, 2))


def test_layer_norm_steps_as_it_runs() -> None:
    norm, x = MaskedLayerNorm(4), torch.randn(2, 6, 4)
    assert torch.allclose(norm.step(x[:, 3]), norm(x)[:, 3], atol=1e-6)
