"""What a report says against the same quantities from the modules' own impulse responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration
from compressm.compress import analyze, compress_
from compressm.errors import ConfigError
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.reduction.criteria import Budget, ErrorBound, FixedFraction, FixedOrder, HankelEnergy, Reference
from compressm.reduction.report import CompressionReport, ReductionPlan
from compressm.settings import Balancing, CompressionSettings

KINDS = [LRU, DenseSSM]


def peak_gain(response: Tensor) -> float:
    """The largest singular value of the transfer function, from the impulse response, on a fine grid."""
    gains = torch.linalg.matrix_norm(torch.fft.rfft(response, n=1 << 13, dim=0), ord=2)
    return float(gains.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [2, 5, 11])
def test_norms_of_the_error(kind: type[nn.Module], order: int, make: Any, white: Any, impulse: Any) -> None:
    layer = make(kind)
    before = impulse(layer, 1024)
    report = compress_(nn.Sequential(layer), white(FixedOrder(order), exact_norms=True)).layers[0]
    error = impulse(layer, 1024) - before
    assert report.hinf_exact
    assert peak_gain(error) <= report.hinf_error * (1 + 1e-6) <= peak_gain(error) * (1 + 1e-4)
    assert peak_gain(before) <= report.hinf_norm * (1 + 1e-6) <= peak_gain(before) * (1 + 1e-4)
    assert report.h2_error == pytest.approx(float(error.square().sum().sqrt()), rel=1e-6)
    assert report.h2_norm == pytest.approx(float(before.square().sum().sqrt()), rel=1e-6)
    assert report.bound is not None and report.hinf_error <= report.bound * (1 + 1e-9)
    assert report.hinf_error >= report.hankel_singular_values[report.real_order] * (1 - 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_below_the_exact_norm_and_near(kind: type[nn.Module], make: Any, white: Any) -> None:
    for seed in range(5):
        exact, estimate = (
            compress_(nn.Sequential(make(kind, seed=seed)), white(FixedOrder(5), exact_norms=flag)).layers[0]
            for flag in (True, False)
        )
        assert not estimate.hinf_exact
        assert 0.95 * exact.hinf_error <= estimate.hinf_error <= exact.hinf_error * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_orders_and_discarded_fraction(kind: type[nn.Module], make: Any, white: Any) -> None:
    layer = make(kind)
    report = compress_(nn.Sequential(layer), white(FixedOrder(5))).layers[0]
    values = torch.tensor(report.hankel_singular_values, dtype=torch.float64)
    per_slot = 2 if kind is LRU else 1
    assert (report.name, report.layer, report.order_before) == ("0", kind.__name__, 16)
    assert len(values) == 16 * per_slot and bool((values.diff() <= 0).all())
    assert report.order_after == layer.order == 5
    assert 5 * per_slot - 2 <= report.real_order <= 5 * per_slot
    assert report.discarded == pytest.approx(float(values[report.real_order :].sum() / values.sum()), rel=1e-12)
    assert report.bound == pytest.approx(2 * float(values[report.real_order :].sum()), rel=1e-12)
    assert report.changed and report.seconds > 0 and report.conditioning >= 1
    assert (report.controllability, report.observability) == ("white", "white")
    assert report.output_change is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_of_the_output_is_that_of_the_layer(kind: type[nn.Module], make: Any, calibrate: Any) -> None:
    layer = make(kind).float()
    model = nn.Sequential(layer)
    calibration = calibrate(model, cases=10)
    (u, _), before = calibration.capture("0").inputs[0], {k: v.clone() for k, v in layer.state_dict().items()}
    report = compress_(model, CompressionSettings(FixedOrder(3)), calibration=calibration).layers[0]
    with torch.no_grad():
        reduced = layer(u)
        for name, p in layer.named_parameters():
            p.set_(before[name])
        full = layer(u)
    assert report.output_change == pytest.approx(float((reduced - full).norm() / full.norm()), rel=1e-3)
    assert report.output_change > 1e-3


def test_the_report_names_the_gramians_used(make: Any, calibrate: Any, white: Any) -> None:
    model = nn.Sequential(make())
    data = compress_(model, CompressionSettings(FixedOrder(8)), calibration=calibrate(model)).layers[0]
    assert (data.controllability, data.observability, data.bound, data.fallbacks) == ("data", "loss", None, ())
    horizon = compress_(nn.Sequential(make()), white(FixedOrder(8), horizon=30)).layers[0]
    assert (horizon.controllability, horizon.observability) == ("white (30 steps)", "white (30 steps)")
    assert horizon.bound is None
    without = compress_(nn.Sequential(make()), CompressionSettings(FixedOrder(8))).layers[0]
    assert (without.controllability, without.observability) == ("white", "white")
    assert without.bound is not None and "no inputs were captured" in without.fallbacks[0]


def test_a_two_sided_cut_that_is_unstable_is_made_with_other_gramians() -> None:
    g, t = torch.Generator().manual_seed(27), torch.arange(64)[None, :, None]

    def tone() -> Tensor:
        phase = t * torch.rand(2, 1, 1, generator=g) * 3.1 + 6 * torch.rand(2, 1, 1, generator=g)
        return torch.cos(phase) * torch.randn(2, 1, 4, generator=g)

    u, gradient = tone(), tone()
    u, gradient = (s + 0.1 * torch.randn(2, 64, 4, generator=g) for s in (u, gradient))
    layer = LRU(4, 32, generator=torch.Generator().manual_seed(27))
    model = nn.Sequential(layer)
    with Calibration(model) as calibration:
        (model(u) * gradient).sum().backward()
    report = compress_(model, CompressionSettings(FixedOrder(2)), calibration=calibration).layers[0]
    assert (report.controllability, report.observability, report.order_after) == ("data", "white", 2)
    assert report.fallbacks[0].startswith(
        "data/loss Gramians: the reduced system of 4 states has the spectral radius 1"
    )
    with torch.no_grad():
        assert bool((layer.nu_log.exp() > 0).all())
        late = layer(torch.nn.functional.pad(torch.ones(1, 1, 4), (0, 0, 0, 50_000)))[0, -1]
    assert float(late.abs().max()) < 1e-3


@pytest.mark.parametrize("criterion", [HankelEnergy(0.1), FixedFraction(0.25), ErrorBound(0.5)], ids=repr)
@pytest.mark.parametrize("data", [False, True])
def test_the_plan_is_what_the_cut_does(criterion: Any, data: bool, make: Any, white: Any, calibrate: Any) -> None:
    model = nn.Sequential(make(), nn.Tanh(), make(DenseSSM, order=9))
    calibration = calibrate(model) if data else None
    settings = CompressionSettings(criterion) if data else white(criterion)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = analyze(model, settings, calibration=calibration)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    report = compress_(model, settings, calibration=calibration)
    for planned, done in zip(plan.layers, report.layers, strict=True):
        assert (planned.name, planned.layer, planned.order) == (done.name, done.layer, done.order_before)
        assert planned.hankel_singular_values == done.hankel_singular_values
        assert (planned.controllability, planned.observability) == (done.controllability, done.observability)
        # Real poles take a stored state each: a reduction keeps fewer states, or more stored ones, than planned.
        assert planned.planned_states - 2 <= done.real_order <= planned.planned_states
        assert planned.planned_order - 1 <= done.order_after <= planned.planned_order + 2


def test_criteria_choose_by_what_they_promise(make: Any, white: Any) -> None:
    energy = compress_(nn.Sequential(make()), white(HankelEnergy(0.1))).layers[0]
    assert energy.changed and energy.discarded <= 0.1 + 0.02
    bounded = compress_(nn.Sequential(make()), white(ErrorBound(0.4), exact_norms=True)).layers[0]
    assert bounded.changed and bounded.hinf_error <= bounded.bound
    assert compress_(nn.Sequential(make()), white(FixedFraction(0.25))).layers[0].order_after == 12


def test_a_budget_is_what_is_left_of_it(make: Any, white: Any) -> None:
    criterion = HankelEnergy(0.2, Reference.INITIAL)
    total = sum(analyze(nn.Sequential(make()), white(criterion)).layers[0].hankel_singular_values)
    free, half, spent = (
        compress_(nn.Sequential(make()), white(criterion), budgets={"0": Budget(total, total * share)}).orders()["0"]
        for share in (0.0, 0.1, 0.2)
    )
    assert free == compress_(nn.Sequential(make()), white(HankelEnergy(0.2))).orders()["0"]
    assert free < half < spent == 16


def test_paper_balancing_is_the_papers(make: Any, white: Any, impulse: Any) -> None:
    layer = make(order=12)
    a = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp())).detach()
    b = (layer.gamma_log.exp()[:, None] * torch.complex(layer.B_re, layer.B_im)).detach()
    c = torch.complex(layer.C_re, layer.C_im).detach()
    p = (b @ b.mH) / (1 - a[:, None] * a.conj()[None])
    q = (c.mH @ c) / (1 - a.conj()[:, None] * a[None])
    lp, lq = torch.linalg.cholesky(p), torch.linalg.cholesky(q)
    u, s, vh = torch.linalg.svd(lq.mH @ lp)
    v, w = lp @ vh.mH[:, :5] / s[:5].sqrt(), lq @ u[:, :5] / s[:5].sqrt()
    small_a, small_b, small_c = w.mH @ torch.diag(a) @ v, w.mH @ b, c @ v
    wanted = [(small_c @ torch.linalg.matrix_power(small_a, k) @ small_b).real for k in range(64)]
    wanted[0] = wanted[0] + torch.diag(layer.D.detach())
    report = compress_(nn.Sequential(layer), white(FixedOrder(5), balancing=Balancing.COMPLEX)).layers[0]
    assert torch.allclose(torch.tensor(report.hankel_singular_values, dtype=torch.float64), s, rtol=1e-8)
    assert (report.order_after, report.real_order) == (5, 5)
    assert torch.allclose(impulse(layer, 64), torch.stack(wanted), atol=1e-9)


def test_real_balancing_is_better_than_the_papers(make: Any, white: Any) -> None:
    def errors(balancing: Balancing) -> list[float]:
        settings = white(FixedOrder(4), balancing=balancing)
        return [compress_(nn.Sequential(make(order=32, seed=s)), settings).layers[0].h2_error for s in range(8)]

    real, paper = errors(Balancing.REAL), errors(Balancing.COMPLEX)
    assert sum(real) < 0.8 * sum(paper) and all(r < p for r, p in zip(real, paper, strict=True))


def test_reports_and_plans_are_json(make: Any, calibrate: Any, white: Any) -> None:
    model = nn.Sequential(make(), make(DenseSSM))
    plan = analyze(model, white(HankelEnergy(0.1)))
    assert ReductionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    report = compress_(model, CompressionSettings(FixedOrder(4)), calibration=calibrate(model))
    assert CompressionReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert report.changed and report.orders() == {"0": 4, "1": 4}
    with pytest.raises(ConfigError, match="format version 99; this library reads 1"):
        CompressionReport.from_dict({**report.to_dict(), "format_version": 99})


def test_layers_without_an_adapter_are_named() -> None:
    class MambaBlock(nn.Linear):
        pass

    model = nn.ModuleDict({"first": MambaBlock(2, 2), "head": nn.Linear(2, 2)})
    for result in (compress_(model), analyze(model)):
        assert result.layers == () and result.unsupported == ("first (MambaBlock)",)
    assert not compress_(model).changed and compress_(nn.Linear(2, 2)).unsupported == ()
