"""A Ctrl-C in the middle of a cut: the cut is whole, and the run can be saved and go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from compressm.reduction.criteria import FixedOrder
from compressm.training import At, trained

RunFactory = Callable[..., Any]
ARGUMENTS = {"schedule": At((3, 6)), "criteria": (FixedOrder(8), FixedOrder(5))}


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_cut_is_whole(
    make_run: RunFactory, compare: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    uninterrupted = make_run(**ARGUMENTS)
    uninterrupted.train(8)
    wanted = uninterrupted.save()
    real = trained.compress_

    def pressed(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        report = real(*args, **kwargs)
        if when == "after":
            os.kill(os.getpid(), signal.SIGINT)
        return report

    run = make_run(**ARGUMENTS)
    with monkeypatch.context() as patch:
        patch.setattr(trained, "compress_", pressed)
        with pytest.raises(KeyboardInterrupt):
            run.train(6)
    assert run.compressor.steps == 3
    assert len(run.compressor.history) == 1
    saved = run.save()
    resumed = make_run(**ARGUMENTS)
    resumed.load(saved)
    resumed.train(5)
    assert compare(resumed.save(), wanted) == []
    run.train(5)
    assert run.orders() == [5, 5]
