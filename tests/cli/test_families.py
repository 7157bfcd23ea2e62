"""Every kind of layer on the command line, where it differs from the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressm.checkpoint import save_checkpoint
from compressm.cli.build import build_model, model_config
from compressm.cli.config import ModelOptions, RunConfig
from compressm.cli.parsing import flatten
from compressm.cli.stored import KIND, open_stored
from compressm.data import Dataset, load_digits
from compressm.layers import LayerKind

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits()


def _store(path: Path, config: RunConfig, digits: Dataset) -> None:
    """An untrained model as a run stores one."""
    settings = model_config(config, digits)
    extra = {"kind": KIND, "model": settings.to_dict(), "config": flatten(config)}
    save_checkpoint(path, build_model(settings, 0), extra=extra)


@pytest.mark.parametrize("kind", [LayerKind.LRU, LayerKind.S4, LayerKind.S5])
def test_analyze_counts_the_parameters_that_a_cut_leaves(
    command: Command, tmp_path: Path, digits: Dataset, kind: LayerKind
) -> None:
    model = tmp_path / "model"
    _store(model, RunConfig(model=ModelOptions(layer=kind, blocks=1, width=4, order=10)), digits)
    shown = command("analyze", model, "--white", "--tolerances", "0.3", "--picture", tmp_path / "a.png")
    assert shown.code == 0, shown.err
    row = next(line.split() for line in shown.out.splitlines() if line.strip().startswith("parameters"))
    now, then = (int(number.replace(",", "")) for number in row[1:])
    before = open_stored(model).model
    assert command("compress", model, "--white", "--discard", 0.3, "--out", tmp_path / "small").code == 0
    after = open_stored(tmp_path / "small").model
    assert [now, then] == [sum(p.numel() for p in m.parameters()) for m in (before, after)]
    assert then < now
    torch.testing.assert_close(open_stored(model).model.state_dict(), before.state_dict())


def test_a_kernel_is_normalised_over_the_length_of_the_data(digits: Dataset) -> None:
    options = ModelOptions(layer=LayerKind.DSS, discretization="softmax")
    assert model_config(RunConfig(model=options), digits).length == 64
    assert model_config(RunConfig(model=ModelOptions(layer=LayerKind.DSS, length=9)), digits).length == 9
    assert model_config(RunConfig(), digits).length is None
