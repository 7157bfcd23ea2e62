"""Every kind of layer is cut by rules that allow a loss, and loses no more than they allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressm.adapters.registry import find_layers
from compressm.analysis import read_system
from compressm.compress import analyze, compress_
from compressm.layers.families import FAMILIES, LayerKind
from compressm.linalg.hankel import hankel_singular_values
from compressm.linalg.horizon import horizon_norms
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import ErrorBound, HankelEnergy
from compressm.reduction.selection import ModalTruncation
from compressm.settings import BatchOrder

ORDER, HORIZON = 24, 1024
CASES = [
    *((kind, {}) for kind in LayerKind if kind is not LayerKind.LINOSS),
    (LayerKind.LINOSS, {"discretization": "im"}),
    (LayerKind.LINOSS, {"discretization": "imex"}),
    (LayerKind.DSS, {"discretization": "softmax", "length": 64}),
]
KEPT = {LayerKind.DSS, LayerKind.LINOSS, LayerKind.D_LINOSS}  # a choice of present states only
every_kind = pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=["-".join((k.value, *map(str, o.values()))) for k, o in CASES]
)


def build(kind: LayerKind, options: dict[str, object]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(FAMILIES[kind].layer(3, ORDER, **options))


def system_of(model: nn.Module) -> StateSpace:
    return read_system(find_layers(model)[0])


def gain(system: StateSpace) -> float:
    return hinf_norm(system) if system.is_stable() else horizon_norms(system, HORIZON).gain


@every_kind
def test_hankel_energy(kind: LayerKind, options: dict[str, object], white) -> None:
    model, settings = build(kind, options), white(HankelEnergy(0.1))
    full = system_of(model)
    (planned,) = analyze(model, settings).layers
    (done,) = compress_(model, settings).layers
    assert done.order_after < ORDER
    assert done.hankel_singular_values == planned.hankel_singular_values
    if kind in KEPT:
        assert planned.planned_order == done.order_after
        assert planned.discarded == done.discarded
    assert done.discarded <= 0.1 + 0.02  # real poles may take a stored state of a pair
    if kind is not LayerKind.LSSL:  # one spectrum for all of its channels
        values = hankel_singular_values(full, horizon=None if full.is_stable() else HORIZON)
        mean = values.flatten(0, -2).mean(0) if values.ndim > 1 else values
        assert done.hankel_singular_values == pytest.approx(mean.tolist(), rel=1e-6, abs=1e-9)
        per = values.shape[-1] // ORDER
        beyond = mean[done.order_after * per :].sum() / mean.sum()
        assert done.discarded >= float(beyond) * (1 - 1e-9)  # nothing with so few states discards less


@every_kind
def test_error_bound(kind: LayerKind, options: dict[str, object], white) -> None:
    model = build(kind, options)
    full = system_of(model)
    tolerance = 0.4 * gain(full)
    settings = white(ErrorBound(tolerance), exact_norms=True)
    (planned,) = analyze(model, settings).layers
    (done,) = compress_(model, settings).layers
    assert planned.planned_order < ORDER and done.order_after < ORDER
    error = gain(difference(full, system_of(model)))
    assert error <= tolerance * (1 + 1e-4)
    assert done.hinf_error == pytest.approx(error, rel=1e-3)
    assert (done.bound is None) == (kind in KEPT or kind is LayerKind.LSSL)
    assert done.bound is None or error <= done.bound * (1 + 1e-4)


@pytest.mark.parametrize("kind", [LayerKind.DSS, LayerKind.D_LINOSS])
def test_tighter_tolerances_keep_more(kind: LayerKind, white) -> None:
    size = gain(system_of(build(kind, {})))
    for criteria in (
        [HankelEnergy(d) for d in (0.4, 0.2, 0.1, 0.02, 0.0)],
        [ErrorBound(t * size) for t in (0.5, 0.2, 0.05, 0.001, 0.0)],
    ):
        orders = [compress_(build(kind, {}), white(c)).layers[0].order_after for c in criteria]
        assert orders == sorted(orders)
        assert orders[0] < orders[2] <= orders[-1] == ORDER


def test_a_bank_of_common_poles_meets_the_tolerance_in_each_or_on_the_whole(white) -> None:
    orders = {
        how: compress_(build(LayerKind.DSS, {}), white(HankelEnergy(0.2), batch_order=how)).layers[0]
        for how in BatchOrder
    }
    assert orders[BatchOrder.POOLED].order_after <= orders[BatchOrder.MAX].order_after
    assert orders[BatchOrder.POOLED].discarded <= 0.2


@pytest.mark.parametrize("kind", [LayerKind.DSS, LayerKind.S4D, LayerKind.D_LINOSS, LayerKind.LRU])
def test_modal_truncation_discards_scores_and_keeps_to_a_measured_error(kind: LayerKind, white) -> None:
    model = build(kind, {})
    report = compress_(model, white(HankelEnergy(0.2), reducer=ModalTruncation())).layers[0]
    assert report.order_after < ORDER and 0 < report.discarded <= 0.2
    model = build(kind, {})
    full = system_of(model)
    tolerance = 0.5 * gain(full)
    report = compress_(model, white(ErrorBound(tolerance), reducer=ModalTruncation(), exact_norms=True)).layers[0]
    assert report.order_after < ORDER
    assert gain(difference(full, system_of(model))) <= tolerance * (1 + 1e-4)


def test_gramians_from_data_promise_no_error_so_it_is_measured(make, calibrate) -> None:
    from compressm.settings import CompressionSettings

    model = nn.Sequential(make(order=20))
    calibration = calibrate(model)
    full = system_of(model)
    tolerance = 0.2 * gain(full)
    settings = CompressionSettings(ErrorBound(tolerance), exact_norms=True)
    report = compress_(model, settings, calibration=calibration).layers[0]
    assert report.controllability == "data" and report.bound is None
    assert report.order_after < 20
    assert gain(difference(full, system_of(model))) <= tolerance * (1 + 1e-6)
