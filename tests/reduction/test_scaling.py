"""Dense systems keep the size of their weights, whatever the units of the Gramians."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressm.adapters.calibration import Calibration
from compressm.compress import compress_
from compressm.layers import LSSL, DenseSSM
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.scaling import common_scale
from compressm.settings import CompressionSettings


def size(t: torch.Tensor) -> float:
    return float(t.detach().square().mean().sqrt())


@pytest.mark.parametrize("loss_scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kind", [DenseSSM, LSSL])
def test_weights_stay_sized_like_the_layers(kind, loss_scale: float) -> None:
    """Gradients of any size, as those of a mean over many steps are, decide the balanced coordinates' size."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 16))
    before = {name: size(p) for name, p in model.named_parameters()}
    with Calibration(model) as calibration:
        (loss_scale * model(torch.randn(8, 100, 4)).square().mean()).backward()
    report = compress_(model, CompressionSettings(FixedOrder(8)), calibration=calibration).layers[0]
    assert (report.observability, report.order_after) == ("loss", 8)
    after = {name: size(p) for name, p in model.named_parameters()}
    for name in ("0.B", "0.C"):
        assert before[name] / 6 < after[name] < before[name] * 6


def test_what_vanishes_has_no_scale() -> None:
    factor, restrict = torch.eye(3, dtype=torch.float64), torch.eye(2, 3, dtype=torch.float64)
    c = torch.ones(1, 3, dtype=torch.float64)
    assert float(common_scale(factor, restrict, c, torch.zeros(1, 2, dtype=torch.float64))) == 1
    assert float(common_scale(torch.zeros(3, 3, dtype=torch.float64), restrict, c, c[:, :2])) == 1
    assert float(common_scale(factor, 0.01 * restrict, c, 100 * c[:, :2])) == pytest.approx(100)
