"""The bank with one state matrix: one Gramian up to the step, and one similarity for all channels."""

from __future__ import annotations

import torch

from compressm.adapters.lssl import LSSLAdapter
from compressm.compress import compress_
from compressm.layers import LSSL
from compressm.linalg.gramians import controllability_gramian, observability_gramian
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings


def layer(order: int = 10) -> LSSL:
    return LSSL(4, order, dt_min=0.01, dt_max=0.3, generator=torch.Generator().manual_seed(1)).double()


def test_the_controllability_gramian_is_that_of_the_continuous_system_times_the_step() -> None:
    lssl = layer()
    system = LSSLAdapter().read(lssl)
    a, b, c = lssl.A.detach(), lssl.B.detach()[:, None], lssl.C.detach()
    continuous = controllability_gramian(StateSpace(a, b, c, sampling_time=0.0))
    steps = lssl.log_dt.detach().exp()
    assert torch.allclose(controllability_gramian(system), steps[:, None, None] * continuous, rtol=1e-8, atol=1e-12)
    q = (
        observability_gramian(system)
        / torch.einsum("hi,hj->hij", c, c).diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    )
    assert not torch.allclose(q[0] * steps[0], q[1] * steps[1], rtol=1e-2)  # C is not sampled along


def test_a_cut_reports_the_error_as_measured_and_no_bound() -> None:
    lssl, white = layer(), GramianSource.WHITE
    before = LSSLAdapter().read(lssl)
    settings = CompressionSettings(FixedOrder(5), controllability=white, observability=white, exact_norms=True)
    (report,) = compress_(lssl, settings).layers
    after = LSSLAdapter().read(lssl)
    assert report.order_after == after.order == 5
    assert lssl.A.shape == (5, 5)
    assert report.bound is None
    assert report.hinf_error is not None
    assert abs(report.hinf_error - float(hinf_norm(difference(before, after)))) < 1e-9
    assert report.hinf_error < 0.2 * report.hinf_norm
    assert after.is_stable()


def test_the_reduced_map_does_not_depend_on_the_states() -> None:
    settings = CompressionSettings(
        FixedOrder(5), controllability=GramianSource.WHITE, observability=GramianSource.WHITE
    )
    responses = []
    for moved in (False, True):
        lssl = layer()
        if moved:
            t = torch.randn(10, 10, generator=torch.Generator().manual_seed(2)).double() + 4 * torch.eye(10).double()
            with torch.no_grad():
                lssl.A.copy_(torch.linalg.solve(t, lssl.A @ t))
                lssl.B.copy_(torch.linalg.solve(t, lssl.B))
                lssl.C.copy_(lssl.C @ t)
        compress_(lssl, settings)
        responses.append(LSSLAdapter().read(lssl).markov_parameters(60))
    assert torch.allclose(*responses, atol=1e-8)
