"""The bank with one state matrix: one Gramian up to the step, and one similarity for all channels."""

from __future__ import annotations

import pytest
import torch

from compressm.adapters.lssl import LSSLAdapter
from compressm.compress import compress_
from compressm.errors import UnstableSystemError
from compressm.layers import LSSL
from compressm.layers.lssl import dissipative_matrix
from compressm.linalg.dissipative import dissipative_states
from compressm.linalg.gramians import controllability_gramian, observability_gramian
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings

SETTINGS = CompressionSettings(FixedOrder(5), controllability=GramianSource.WHITE, observability=GramianSource.WHITE)


def layer(order: int = 10) -> LSSL:
    return LSSL(4, order, dt_min=0.01, dt_max=0.3, generator=torch.Generator().manual_seed(1)).double()


def matrix(lssl: LSSL) -> torch.Tensor:
    return dissipative_matrix(lssl.skew.detach(), lssl.log_decay.detach())


def test_the_controllability_gramian_is_that_of_the_continuous_system_times_the_step() -> None:
    lssl = layer()
    system = LSSLAdapter().read(lssl)
    a, b, c = matrix(lssl), lssl.B.detach()[:, None], lssl.C.detach()
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
    assert lssl.skew.shape == (5, 5)
    assert report.bound is None
    assert report.hinf_error is not None
    assert abs(report.hinf_error - float(hinf_norm(difference(before, after)))) < 1e-9
    assert report.hinf_error < 0.2 * report.hinf_norm
    assert after.is_stable()


def test_the_reduced_map_does_not_depend_on_the_states() -> None:
    """LegS decays alike in all directions but one, so that states may be rotated among them."""
    responses = []
    for moved in (False, True):
        lssl = layer()
        if moved:
            noise = torch.randn(9, 9, generator=torch.Generator().manual_seed(2)).double()
            t = torch.block_diag(torch.ones(1, 1).double(), torch.linalg.qr(noise).Q)
            before = LSSLAdapter().read(lssl).markov_parameters(60)
            with torch.no_grad():
                lssl.skew.copy_(t.mT @ lssl.skew @ t)
                lssl.B.copy_(t.mT @ lssl.B)
                lssl.C.copy_(lssl.C @ t)
            assert torch.allclose(LSSLAdapter().read(lssl).markov_parameters(60), before, atol=1e-5)
        compress_(lssl, SETTINGS)
        responses.append(LSSLAdapter().read(lssl).markov_parameters(60))
    assert torch.allclose(*responses, atol=1e-5)  # the initial decays are equal to float32


def test_states_after_a_cut_are_those_of_a_measure() -> None:
    """A + A^T = -2 alpha I - B B^T, as of LegS: all states of one size under white noise, weights of that scale."""
    lssl = layer()
    with torch.no_grad():
        lssl.B.add_(torch.randn(10, generator=torch.Generator().manual_seed(3)).double())
        lssl.skew.add_(torch.randn(10, 10, generator=torch.Generator().manual_seed(4)).double())
    compress_(lssl, SETTINGS)
    a, b = matrix(lssl), lssl.B.detach()
    alpha = -torch.linalg.eigvals(a).real.amax() / 2
    wanted = -2 * alpha * torch.eye(5) - torch.outer(b, b)
    assert torch.allclose(a + a.mT, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("order", [1, 5, 20])
def test_dissipative_states_of_any_stable_system(order) -> None:
    """Also where no input reaches some states, and in states far from these."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        t, g, b = (torch.randn(order, k, generator=generator).double() for k in (order, order, 1))
        a = torch.linalg.solve(t, (g - g.mT - torch.diag(torch.rand(order, generator=generator).double() + 0.01)) @ t)
        b[seed:] = 0
        states = dissipative_states(a, b)
        moved = torch.linalg.solve(states, a @ states)
        beside = moved + moved.mT
        assert (beside.diagonal() < 0).all()
        assert (beside - torch.diag(beside.diagonal())).abs().max() <= 1e-8 * moved.abs().max()


def test_an_unstable_system_has_no_dissipative_states() -> None:
    for pole in (0.0, 0.5):
        with pytest.raises(UnstableSystemError, match="no negative real part"):
            dissipative_states(torch.diag(torch.tensor([-1.0, pole]).double()), torch.ones(2, 1).double())
