"""How far the channels of a layer differ is shown, not only their mean."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("rich")

from compressm.cli.report.outlook import outlook_tables, spectrum_lines
from compressm.cli.report.spectra_picture import SpectrumLine, draw_spectra
from compressm.cli.stored_analysis import Outlook
from compressm.compress import analyze
from compressm.reduction.criteria import HankelEnergy
from compressm.reduction.report import BankSpectrum
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings


def test_mean_largest_and_median_channels_have_a_row_and_a_line(channels, adapters) -> None:
    white = GramianSource.WHITE
    settings = CompressionSettings(HankelEnergy(0.1), controllability=white, observability=white)
    plan = analyze(channels(5, 6), settings, adapters=adapters)
    outlooks = [Outlook(discard=0.1, plan=plan, parameters=123)]
    spectra, _ = outlook_tables(outlooks, 200)
    assert [row[0].split(", ")[1] for row in spectra.rows] == [
        f"{w} of 5 channels" for w in ("mean", "largest", "median")
    ]
    (layer,) = plan.layers
    assert spectra.rows[1][4] == f"{layer.bank.largest[0]:.2e}"
    (lines,) = spectrum_lines(outlooks).values()
    assert [line.values for line in lines] == [layer.hankel_singular_values, layer.bank.largest, layer.bank.median]
    assert lines[0].channels == layer.bank.values and len(layer.bank.values) == 5


def test_every_channel_is_in_the_picture(tmp_path, monkeypatch) -> None:
    axes = pytest.importorskip("matplotlib.axes")
    drawn: list[list[float]] = []
    original = axes.Axes.plot

    def plot(self, *args, **kwargs):
        drawn.append(list(args[1]) if len(args) > 1 and not isinstance(args[1], (int, float)) else [])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(axes.Axes, "plot", plot)
    layer = BankSpectrum.of(torch.tensor([[4.0, 2.0, 1.0], [8.0, 0.8, 0.0]]))
    draw_spectra(tmp_path / "a.png", {"bank": [SpectrumLine("mean", [6.0, 1.4, 0.5], {}, layer.values)]}, "title")
    assert (tmp_path / "a.png").stat().st_size > 0
    assert [1.0, 0.5, 0.25] in drawn and any(curve[:2] == pytest.approx([1.0, 0.1]) for curve in drawn)
