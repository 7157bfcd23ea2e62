"""The command line on a measured system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def test_train_and_eval(command: Any, tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path))
    (tmp_path / "sysid").mkdir()
    rng = np.random.default_rng(0)
    signals = {}
    for part in ("train", "test"):
        u = rng.normal(size=1024)
        signals |= {f"u_{part}": u, f"y_{part}": np.convolve(u, 0.8 ** np.arange(30))[:1024]}
    np.savez(tmp_path / "sysid" / "cascaded_tanks.npz", **signals)
    run = tmp_path / "run"
    result = command("train", "cascaded-tanks", "--run", run, *tiny)
    assert result.code == 0, result.err
    assert "test nrmse" in result.out
    shown = command("eval", run)
    assert shown.code == 0 and "test fit" in shown.out and "test rmse" in shown.out
    np.savez(tmp_path / "classes.npz", X=rng.normal(size=(20, 30, 1)), y=rng.normal(size=20))
    refused = command("eval", run, "--data", tmp_path / "classes.npz")
    assert refused.code != 0 and "made for values at each step" in refused.err
