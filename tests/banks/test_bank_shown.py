"""How far the channels of a layer differ is shown, not only their mean."""

from __future__ import annotations

import pytest

pytest.importorskip("rich")

from compressm.cli.report.outlook import outlook_tables, spectrum_lines
from compressm.cli.stored_analysis import Outlook
from compressm.compress import analyze
from compressm.reduction.criteria import HankelEnergy
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
