"""What a cut of oscillators keeps, and how."""

from __future__ import annotations

import pytest
import torch

from compressm import CompressionSettings, FixedOrder, GramianSource, ModalTruncation, compress_
from compressm.layers.oscillators import DampedLinOSS, LinOSS, OscillatorLayer
from compressm.reduction.keeping import BalancedSelection

WHITE = GramianSource.WHITE


def build(kind: str) -> OscillatorLayer:
    generator = torch.Generator().manual_seed(3)
    if kind == "damped":
        return DampedLinOSS(3, 12, generator=generator).double()
    return LinOSS(3, 12, discretization=kind, generator=generator).double()


def cut(layer: OscillatorLayer, reducer: object) -> object:
    settings = CompressionSettings(FixedOrder(5), controllability=WHITE, observability=WHITE, reducer=reducer)
    return compress_(layer, settings).layers[0]


@pytest.mark.parametrize("kind", ["im", "damped"])
def test_fitted_output_weights_lower_the_error(kind: str) -> None:
    errors = [cut(build(kind), reducer).h2_error for reducer in (BalancedSelection(), BalancedSelection(refit=False))]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("kind", ["im", "imex", "damped"])
def test_kept_oscillators_stay_as_they_are(kind: str) -> None:
    layer, full = build(kind), build(kind)
    cut(layer, BalancedSelection())
    pairs = torch.stack([full.A, full.step_size], -1)
    for oscillator, b in zip(torch.stack([layer.A, layer.step_size], -1), layer.B, strict=True):
        index = (pairs == oscillator).all(-1).nonzero()
        assert len(index) == 1 and torch.equal(full.B[index[0, 0]], b)
    assert layer.C.shape == (3, 5)


def test_undamped_ones_are_weighed_over_a_finite_horizon() -> None:
    report = cut(build("imex"), BalancedSelection())
    assert "steps" in report.controllability and "steps" in report.observability
    assert 0 < report.hinf_error < report.hinf_norm and 0 < report.h2_error < report.h2_norm


def test_modal_truncation_changes_no_weight() -> None:
    layer, full = build("damped"), build("damped")
    cut(layer, ModalTruncation())
    kept = [int((a == full.A).nonzero()) for a in layer.A]
    assert torch.equal(layer.C, full.C[:, kept])
