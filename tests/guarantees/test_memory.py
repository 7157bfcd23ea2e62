"""500 cuts, each taken back, in one process: neither tensors nor memory pile up."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressm import (
    CompressionSettings,
    FixedOrder,
    Guard,
    InTrainingCompressor,
    compress_,
    load_checkpoint,
    save_checkpoint,
)
from compressm.training import Every

CUTS = 250  # of each kind
WARM_UP = 50
MOST_GROWTH = 4 << 20  # bytes; one copy of a run a cut would be five times as much


def tensors_alive() -> tuple[int, int]:
    """How many there are, and how many numbers they hold."""
    gc.collect()
    sizes = [value.numel() for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    return len(sizes), sum(sizes)


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def require_no_growth(cut_and_restore: Callable[[], None]) -> None:
    for _ in range(WARM_UP):
        cut_and_restore()
    alive, held = tensors_alive(), resident()
    for _ in range(CUTS - WARM_UP):
        cut_and_restore()
    assert tensors_alive() == alive
    assert resident() - held < MOST_GROWTH


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest would keep every record, with what it tells of."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
class TestGrowth:
    def test_taken_back_by_the_guard(self, new_run: Callable[..., Any]) -> None:
        run, cuts = new_run(blocks=1), []
        metric = iter(lambda: float(len(cuts)), None)  # larger after every cut
        guard = Guard(lambda: next(metric), 0.5, higher_is_better=False, probe_after=1, stop_after_rollback=False)
        compressor = InTrainingCompressor(
            run.model, run.optimizer, schedule=Every(1), criteria=[FixedOrder(4)], guard=guard, on_cut=cuts.append
        )

        def cut_and_restore() -> None:
            before = len(cuts)
            while len(cuts) == before or compressor.pending_probe:
                run.step()
                compressor.step()
            cuts[:] = [None] * len(cuts)  # this test itself must hold none of them

        require_no_growth(cut_and_restore)
        assert len(cuts) == CUTS and compressor.orders() == {"blocks.0.ssm": 8}

    def test_taken_back_from_a_checkpoint(self, new_run: Callable[..., Any], tmp_path: Path) -> None:
        run, settings = new_run(blocks=1, layer="s4d"), CompressionSettings(criterion=FixedOrder(4))
        run.step()
        save_checkpoint(tmp_path / "whole", run.model, optimizer=run.optimizer)
        cuts = []

        def cut_and_restore() -> None:
            report = compress_(run.model, settings, optimizer=run.optimizer)
            run.step()
            cuts.append(report.changed)
            load_checkpoint(tmp_path / "whole", run.model, optimizer=run.optimizer)

        require_no_growth(cut_and_restore)
        assert cuts == [True] * CUTS
