"""Each integration in two processes that torchrun starts: the run of one process, and one that stops and goes on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from compressm import load_checkpoint

SCRIPT = Path(__file__).parent / "many.py"
SOURCE = str(Path(__file__).parents[3] / "src")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("many", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("trainer", "package"),
    [("lightning", "lightning.pytorch"), ("huggingface", "transformers"), ("accelerate", "accelerate")],
)
def test_two_processes(script: Any, tmp_path: Path, trainer: str, package: str) -> None:
    pytest.importorskip(package)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(SCRIPT), trainer, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    alone = script.TRAINERS[trainer](tmp_path / "alone", (0, 1), dropout=0.0, settings="white")
    assert [block.ssm.order for block in alone.model.blocks] == [5, 5]
    models = {}
    for name in ("parity-0", "parity-1", "again-0", "again-1"):
        models[name] = script.build(0.0)
        extra = load_checkpoint(tmp_path / name, models[name])
        if name.startswith("again"):
            assert extra == {"unequal": [], "steps": [3, 7]}
    for part in ("parity", "again"):
        for one, other in zip(models[f"{part}-0"].parameters(), models[f"{part}-1"].parameters(), strict=True):
            assert torch.equal(one, other)
    x = script.dataset().tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(models["parity-0"](x), alone.model.eval()(x), rtol=0, atol=1e-9)
