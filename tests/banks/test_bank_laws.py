"""Layers with one system for each channel: the laws, and a bank against its channels one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration, Capture
from compressm.adapters.moments import controllability_moments, observability_moments, output_change
from compressm.compress import analyze, compress_
from compressm.errors import AdapterError
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.norms import difference, h2_norm, hinf_estimate, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import FixedOrder, HankelEnergy, OrderChoice
from compressm.reduction.reduce import reduce_dense, reduce_diagonal
from compressm.reduction.reducers import BalancedTruncation, Keep, SingularPerturbation
from compressm.reduction.report import CompressionReport, ReductionPlan
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.weighting import Limits, Weighting
from compressm.settings import BatchOrder, CompressionSettings
from compressm.testing import check_adapter
from compressm.testing.strategies import batches
from compressm.testing.systems import stack_systems, unstack_systems

WHITE = {"controllability": GramianSource.WHITE, "observability": GramianSource.WHITE}


def weighting_of(system: StateSpace, frame: Frame) -> Weighting:
    factors = gramian_factors(system, frame)
    return Weighting(factors, hankel_spectrum(factors), GramianSource.WHITE, GramianSource.WHITE)


@pytest.mark.parametrize("order", [2, 5, 8])
def test_a_bank_obeys_the_laws(channels, adapters, order: int) -> None:
    check_adapter(lambda: channels(3, order), adapters[channels])


def test_a_bank_with_tied_poles_obeys_the_laws_of_selection(tied_channels, adapters) -> None:
    check_adapter(lambda: tied_channels(3, 6), adapters[tied_channels])


def test_features_in_another_order_are_refused(channels, adapters) -> None:
    class Reversed(channels):
        def forward(self, u: Tensor) -> Tensor:
            return super().forward(u).flip(-1)

    with pytest.raises(AdapterError, match="differs from that of"):
        analyze(Reversed(3, 4), adapters={Reversed: adapters[channels]})


@settings(max_examples=15, deadline=None)
@given(system=batches(max_order=6))
def test_a_bank_is_reduced_as_its_systems_are(system: StateSpace) -> None:
    """Stored orders differ from system to system; all get the largest, and the same input-output maps."""
    frame = Frame.REAL if system.output == "real" else Frame.COMPLEX
    per = 2 if frame is Frame.REAL else 1
    slots = max(1, system.order // 2)
    choice = OrderChoice(per * slots, slots)
    whole = reduce_diagonal(system, weighting_of(system, frame), choice, BalancedTruncation(), Limits())
    single = [
        reduce_diagonal(s, weighting_of(s, frame), choice, BalancedTruncation(), Limits())
        for s in unstack_systems(system)
    ]
    if not isinstance(whole, Reduction):
        assert not all(isinstance(r, Reduction) for r in single)
        return
    assert all(isinstance(r, Reduction) for r in single)
    assert whole.order == max(r.order for r in single)
    assert whole.states.tolist() == [int(r.states) for r in single]
    for i, (full, one) in enumerate(zip(unstack_systems(system), single, strict=True)):
        mine = unstack_systems(whole.system)[i]
        size = max(h2_norm(full), 1e-30)
        assert h2_norm(difference(mine, one.system)) < 1e-6 * size
        count = one.order if int(one.states) else 0  # a system of which nothing is left has idle states only
        assert bool((mine.c[:, count:] == 0).all())
        assert bool((whole.restrict.linear[i, count:] == 0).all())
        assert bool((whole.embed.linear[i, :, count:] == 0).all())
    b, c = whole.restrict(system.b.to(torch.complex128)), whole.embed.right(system.c.to(torch.complex128))
    for i, r in enumerate(single):
        used = r.order if int(r.states) else 0
        small = unstack_systems(whole.system)[i]
        close = {"rtol": 1e-5, "atol": 1e-7 * float(small.b.abs().max() + small.c.abs().max())}
        assert torch.allclose(b[i, :used], small.b[:used], **close)
        assert torch.allclose(c[i, :, :used], small.c[:, :used], **close)


@pytest.mark.parametrize(
    "reducer", [BalancedTruncation(), BalancedTruncation(keep=Keep.SMALLEST), SingularPerturbation()]
)
def test_a_dense_bank_is_reduced_as_its_systems_are(channels, adapters, reducer) -> None:
    system = in_frame(adapters[channels].read(channels(4, 4)), Frame.REAL)
    balanced = reducer.balanced_system(system)
    weighting = weighting_of(balanced, Frame.REAL)
    whole = reduce_dense(system, weighting, OrderChoice(5, 5), reducer, Limits())
    for i, s in enumerate(unstack_systems(system)):
        one = reduce_dense(
            s, weighting_of(reducer.balanced_system(s), Frame.REAL), OrderChoice(5, 5), reducer, Limits()
        )
        assert one.order == whole.order
        assert h2_norm(difference(unstack_systems(whole.system)[i], one.system)) < 1e-8 * h2_norm(s)


def test_norms_of_a_bank_are_the_largest_of_its_systems(channels, adapters) -> None:
    system = adapters[channels].read(channels(5, 6))
    dense = in_frame(system, Frame.REAL)
    for bank in (system, dense):
        one_by_one = unstack_systems(bank)
        assert h2_norm(bank) == pytest.approx(max(map(h2_norm, one_by_one)), rel=1e-10)
        exact = max(map(hinf_norm, one_by_one))
        assert hinf_norm(bank) == pytest.approx(exact, rel=1e-7)
        assert 0.98 * exact < hinf_estimate(bank) <= exact * (1 + 1e-9)


def test_a_cut_gives_all_channels_the_order_of_the_neediest(channels, adapters) -> None:
    model = nn.Sequential(channels(6, 8))
    before = adapters[channels].read(model[0])
    report = compress_(model, CompressionSettings(HankelEnergy(0.05), **WHITE), adapters=adapters)
    (layer,) = report.layers
    after = adapters[channels].read(model[0])
    assert layer.changed and after.order == layer.order_after < 8
    errors = [hinf_norm(difference(f, r)) for f, r in zip(*map(unstack_systems, (before, after)), strict=True)]
    assert max(errors) <= layer.bound * (1 + 1e-4)
    assert layer.hinf_error == pytest.approx(max(errors), rel=0.05)
    values = hankel_singular_values(before)
    tails = [2 * float(v[k:].sum()) for v, k in zip(values, layer.bank.states, strict=True)]
    assert layer.bound == pytest.approx(max(tails))
    assert layer.discarded == pytest.approx(sum(tails) / 2 / float(values.sum()))
    assert max(layer.bank.states) == layer.real_order
    assert layer.bank.largest == pytest.approx(values.amax(0).tolist())
    assert CompressionReport.from_dict(report.to_dict()) == report
    y = model(torch.randn(2, 20, 6))
    y.sum().backward()


def test_pooled_orders_are_those_of_the_mean_spectrum(channels, adapters) -> None:
    model = channels(6, 8)
    with torch.no_grad():
        model.C[0] *= 100  # one channel alone, in which little can be dropped relative to the others
        model.C[0, 1:] *= 0.01
    plans = {}
    for how in BatchOrder:
        plan = analyze(model, CompressionSettings(HankelEnergy(0.1), batch_order=how, **WHITE), adapters=adapters)
        plans[how] = plan.layers[0]
        assert ReductionPlan.from_dict(plan.to_dict()) == plan
    values = hankel_singular_values(adapters[channels].read(model))
    mean = values.mean(0)
    wanted = int((mean.flip(0).cumsum(0).flip(0) > 0.1 * mean.sum()).sum())
    assert plans[BatchOrder.POOLED].planned_states == wanted
    assert plans[BatchOrder.POOLED].planned_order < plans[BatchOrder.MAX].planned_order
    assert plans[BatchOrder.MAX].hankel_singular_values == pytest.approx(mean.tolist())


@pytest.mark.parametrize("padded", [False, True])
def test_captured_inputs_and_gradients_weight_each_channel_by_its_own(channels, adapters, padded: bool) -> None:
    """The Gramians of a bank from data are those of each channel alone, driven by its own feature."""
    system = adapters[channels].read(channels(4, 3))
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(5, 40, 4, generator=generator) * torch.tensor([1.0, 0.1, 5.0, 2.0])
    mask = torch.rand(5, 40, generator=generator) > 0.3 if padded else None
    capture = Capture([(u, mask)], [(u.flip(1), mask)])
    p, q = (f(system, capture, Frame.REAL) for f in (controllability_moments, observability_moments))
    for i, s in enumerate(unstack_systems(system)):
        alone = Capture([(u[..., i : i + 1], mask)], [(u.flip(1)[..., i : i + 1], mask)])
        assert torch.allclose(p[i], controllability_moments(s, alone, Frame.REAL), rtol=1e-4, atol=1e-6)
        assert torch.allclose(q[i], observability_moments(s, alone, Frame.REAL), rtol=1e-4, atol=1e-6)
    assert output_change(system, system, capture) == 0


def test_a_bank_cut_under_its_own_data_keeps_more_of_its_output(channels, adapters) -> None:
    def cut(weighted: bool) -> float:
        model = nn.Sequential(channels(4, 12))
        time = torch.arange(60.0)
        u = torch.sin(time[:, None] * torch.tensor([0.1, 0.2, 0.4, 0.8])).expand(3, 60, 4)
        with Calibration(model, adapters=adapters) as calibration:
            model(u).square().mean().backward()
        chosen = {} if weighted else WHITE
        report = compress_(
            model, CompressionSettings(FixedOrder(2), **chosen), calibration=calibration, adapters=adapters
        )
        (layer,) = report.layers
        assert layer.controllability == ("data" if weighted else "white")
        return layer.output_change

    assert cut(True) < 0.5 * cut(False)


def test_a_silent_channel_does_not_lose_its_states(channels, adapters) -> None:
    """A feature that was zero in all captured passes would make its channel's weighted Gramian vanish."""
    model = nn.Sequential(channels(3, 6))
    u = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0))
    u[..., 1] = 0
    with Calibration(model, adapters=adapters) as calibration:
        model(u).square().mean().backward()
    report = compress_(model, CompressionSettings(FixedOrder(3)), calibration=calibration, adapters=adapters)
    assert report.layers[0].controllability == "white"
    assert min(report.layers[0].bank.states) > 0


def test_layers_that_have_features_first_arrange_them(channels, adapters) -> None:
    class FeaturesFirst(channels):
        def forward(self, u: Tensor) -> Tensor:
            return super().forward(u.mT).mT

    class FeaturesFirstAdapter(type(adapters[channels])):
        def inputs(self, layer, args, kwargs):
            u, mask = super().inputs(layer, args, kwargs)
            return u.mT, mask

        def arranged(self, layer, value):
            return value.mT

        def response(self, layer, u):
            return type(layer).forward(layer, u.mT).mT

    found = {FeaturesFirst: FeaturesFirstAdapter(), **adapters}
    u = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0))
    captures = []
    for model, x in ((FeaturesFirst(3, 6), u.mT), (channels(3, 6), u)):
        with Calibration(model, adapters=found) as calibration:
            model(x).square().mean().backward()
        captures.append(calibration.capture(""))
    assert torch.equal(captures[0].inputs[0][0], captures[1].inputs[0][0])
    assert torch.allclose(captures[0].gradients[0][0], captures[1].gradients[0][0])
    assert captures[0].gradients[0][0].shape == (2, 30, 3)


def test_simulation_of_a_bank_is_that_of_its_systems() -> None:
    """Feature h m + i is input i of system h, and output features likewise."""
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 4, generator=g, dtype=torch.float64) * 0.9
    b, c = (torch.randn(2, 3, *s, generator=g, dtype=torch.float64) for s in ((4, 2), (5, 4)))
    bank = StateSpace(a, b, c, torch.randn(2, 3, 5, 2, generator=g, dtype=torch.float64))
    u = torch.randn(7, 9, bank.input_features, generator=g, dtype=torch.float64)
    y = bank.simulate(u).unflatten(-1, (6, 5))
    parts = u.unflatten(-1, (6, 2))
    singles = unstack_systems(bank.with_batch(6))
    assert bank.output_features == 30
    for i, s in enumerate(singles):
        assert torch.allclose(y[..., i, :], s.simulate(parts[..., i, :]))
    assert torch.equal(stack_systems(singles).a, bank.a.flatten(0, 1))
