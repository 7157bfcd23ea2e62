"""Cuts that are fitted to the captured inputs, measured by the layers' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressm.adapters.calibration import Calibration
from compressm.adapters.fitting import most_positions, positions_to_fit
from compressm.compress import compress_
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.layers.rotations import RotationSSM
from compressm.layers.s4d import S4D
from compressm.layers.s5 import S5
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import ErrorBound, FixedOrder
from compressm.reduction.fitting import least_positions
from compressm.reduction.reducers import BalancedTruncation
from compressm.reduction.report import CompressionReport, LayerReport
from compressm.settings import CompressionSettings
from compressm.training import At, InTrainingCompressor
from compressm.training.history import Cut
from compressm.training.integrations.reporting import event_metrics

FITTED = BalancedTruncation(refit=True)
LAYERS = [LRU, DenseSSM, RotationSSM, S4D, S5]


def slow(cases: int, seed: int, length: int = 60) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(cases, length, 3, generator=g).cumsum(1) / 3


def cut(kind: type[nn.Module], refit: bool, **settings: Any) -> tuple[LayerReport, float, CompressionReport]:
    """The report, and the change of the output on inputs that were not captured."""
    layer = kind(3, 12, generator=torch.Generator().manual_seed(0))
    with Calibration(layer) as calibration:
        layer(slow(24, 0)).square().sum().backward()
    u = slow(50, 1)
    with torch.no_grad():
        before = layer(u)
        settings = {"criterion": FixedOrder(3), "reducer": BalancedTruncation(refit=refit)} | settings
        report = compress_(layer, CompressionSettings(**settings), calibration=calibration)
        change = float((layer(u) - before).norm() / before.norm())
    return report.layers[0], change, report


@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_changes_less_on_other_inputs_too(kind: type[nn.Module]) -> None:
    (plain, change, _), (report, fitted_change, whole) = cut(kind, False), cut(kind, True)
    assert (plain.fit_before, plain.fit_after) == (None, None)
    assert report.order_after == plain.order_after == 3
    assert report.fit_before is not None and report.fit_after is not None and report.fit_after < report.fit_before
    assert fitted_change < change
    assert report.bound is None
    assert CompressionReport.from_dict(whole.to_dict()) == whole


def test_gains_are_told_in_a_line_and_to_loggers() -> None:
    (plain, _, _), (report, _, whole) = cut(LRU, False), cut(LRU, True)
    assert report.fit_before is not None and report.fit_after is not None
    gain = f"error on inputs left out of the fit {report.fit_before:.2%} -> {report.fit_after:.2%}"
    assert str(whole) == str(report) and "LRU: order 12 -> 3, discarded " in str(report) and gain in str(report)
    assert "fit" not in str(plain)
    model = LRU(3, 12)
    compressor = InTrainingCompressor(model, torch.optim.SGD(model.parameters(), 0.1), schedule=At((9,)))
    told = event_metrics([Cut(9, whole)], compressor)
    assert (told["compressm/fit_before/model"], told["compressm/fit_after/model"]) == (
        report.fit_before,
        report.fit_after,
    )


def test_what_was_promised_is_not_fitted(white: Any) -> None:
    report, _, _ = cut(LRU, True, criterion=ErrorBound(0.5))
    assert "ErrorBound promises an error" in report.fallbacks[-1]
    assert report.fit_after is None and report.hinf_error is not None and report.hinf_error <= 0.5
    layer = LRU(3, 12, generator=torch.Generator().manual_seed(0))
    with Calibration(layer) as calibration:
        layer(slow(24, 0)).square().sum().backward()
    report = compress_(layer, white(FixedOrder(3), reducer=FITTED), calibration=calibration).layers[0]
    assert report.fit_after is None and report.bound is not None and report.hinf_error <= report.bound


def test_a_cut_is_repeatable_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = (cut(LRU, True)[1] for _ in range(2))
    assert first == second and torch.equal(before, torch.get_rng_state())


def test_one_sequence_is_not_enough(make: Any) -> None:
    layer = make(LRU).float()
    with Calibration(layer) as calibration:
        layer(slow(1, 0)).square().sum().backward()
    report = compress_(layer, CompressionSettings(FixedOrder(3), reducer=FITTED), calibration=calibration).layers[0]
    assert report.order_after == 3 and report.fit_after is None
    assert report.fallbacks == ("not fitted to the captured inputs: only one sequence was captured",)


def test_sequences_of_different_lengths_and_masks(make: Any) -> None:
    layer = make(LRU).float()
    mask = torch.arange(60) < torch.randint(20, 61, (12, 1), generator=torch.Generator().manual_seed(0))
    with Calibration(layer) as calibration:
        (layer(slow(12, 0), mask=mask) * mask[..., None]).square().sum().backward()
        layer(slow(12, 1, length=33)).square().sum().backward()
    report = compress_(layer, CompressionSettings(FixedOrder(3), reducer=FITTED), calibration=calibration).layers[0]
    assert report.fit_before is not None and report.fit_after < report.fit_before


@torch.no_grad()
@pytest.mark.parametrize("kind", [LRU, DenseSSM])
def test_a_copy_that_equals_the_layer_stays_equal(kind: type[nn.Module]) -> None:
    model, copy = (nn.Sequential(kind(3, 12, generator=torch.Generator().manual_seed(0))) for _ in range(2))
    with torch.enable_grad(), Calibration(model) as calibration:
        model(slow(24, 0)).square().sum().backward()
    report = compress_(
        model, CompressionSettings(FixedOrder(3), reducer=FITTED), calibration=calibration, mirrors=[copy]
    )
    assert report.layers[0].fit_after is not None
    torch.testing.assert_close(copy(slow(4, 1)), model(slow(4, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("systems", "n", "r", "fits"),
    [(1, 512, 250, True), (1, 512, 300, False), (512, 64, 12, True), (512, 64, 32, False)],
)
def test_how_many_positions_are_looked_at(systems: int, n: int, r: int, fits: bool) -> None:
    def system(order: int) -> StateSpace:
        a = torch.full((systems, order), 0.5 + 0.1j, dtype=torch.complex128)
        return StateSpace(a, a.unsqueeze(-1), a.unsqueeze(-2), None, output="real")

    full, small = system(n), system(r)
    found = positions_to_fit(full, small, 100)
    assert (found > 0) is fits and found <= most_positions(full)
    if fits:  # whole sequences, every other one to fit
        assert found // 100 // 2 * 100 >= least_positions(small)
