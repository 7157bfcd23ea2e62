"""New optimizer state is continuous in the old: round-off in it changes nothing beyond round-off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.adapters.pullbacks import typical
from compressm.adapters.update import Pullback
from compressm.surgery.moments import transport

V = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def carried(m: Tensor, v: Tensor) -> Tensor:
    follow = Pullback(("w",), lambda old: {"w": V.mT @ old["w"]}, lambda old: {"w": typical(old["w"], 0, 5)})
    entries = {"w": {"step": torch.tensor(3.0), "exp_avg": m, "exp_avg_sq": v}}
    new = transport(follow, entries, {"w": {}}, {"w": torch.Size([5, 4])})
    return new["w"]["exp_avg_sq"]


@pytest.mark.parametrize("seed", range(20))
def test_second_moments_do_not_hang_on_round_off(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    v = torch.rand(8, 4, dtype=torch.float64, generator=g) * 1e-6
    m = torch.randn(8, 4, dtype=torch.float64, generator=g) * v.sqrt()
    noise = 1 + 4e-16 * torch.randn(8, 4, dtype=torch.float64, generator=g)
    torch.testing.assert_close(carried(m * noise, v), carried(m, v), rtol=1e-10, atol=0)
