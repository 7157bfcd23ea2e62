"""What is particular to DSS: one keep-set for all channels, weights fitted anew, poles as they were."""

from __future__ import annotations

import torch

from compressm.adapters.dss import DSSAdapter
from compressm.compress import compress_
from compressm.layers import DSS
from compressm.linalg.norms import difference, h2_norm
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings


def test_a_cut_keeps_poles_and_fits_the_weights_of_all_channels() -> None:
    layer = DSS(3, 12, dt_min=0.01, dt_max=0.3, generator=torch.Generator().manual_seed(0)).double()
    decay, frequency = (p.detach().clone() for p in (layer.log_A_real, layer.A_imag))
    weights = torch.complex(layer.C_re, layer.C_im).detach()
    before, white = DSSAdapter().read(layer), GramianSource.WHITE
    (report,) = compress_(layer, CompressionSettings(FixedOrder(6), controllability=white, observability=white)).layers
    assert report.order_after == layer.order == 6
    kept = torch.tensor([int((frequency == value).nonzero()) for value in layer.A_imag])
    assert torch.equal(layer.log_A_real, decay[kept])
    assert not torch.allclose(torch.complex(layer.C_re, layer.C_im), weights[:, kept])
    fitted = float(h2_norm(difference(before, DSSAdapter().read(layer))))
    with torch.no_grad():
        layer.C_re.copy_(weights[:, kept].real)
        layer.C_im.copy_(weights[:, kept].imag)
    assert fitted < 0.9 * float(h2_norm(difference(before, DSSAdapter().read(layer))))
