"""The script of docs/howto/many-processes.md, as it stands there, under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compressm.checkpoint import read_structure

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "howto" / "many-processes.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


SAVED = "        dist.barrier()\n"
DIES = SAVED + "        if compressor.steps == 40:\n            __import__('os').abort()\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    text = re.search(r'```python title="train.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "train.py"
    path.write_text(text[1], encoding="utf-8")
    return path


def torchrun(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, timeout=800, check=False
    )


def test_the_example_trains_and_goes_on_where_it_was_killed(script: Path, tmp_path: Path) -> None:
    whole = torchrun(script, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "cut, order" in whole.stdout
    text = script.read_text(encoding="utf-8")
    assert text.count(SAVED) == 1
    dying = script.with_name("dying.py")
    dying.write_text(text.replace(SAVED, DIES), encoding="utf-8")
    assert torchrun(dying, tmp_path / "killed").returncode != 0
    again = torchrun(script, tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert again.stdout == whole.stdout
    ends = [read_structure(tmp_path / name) for name in ("whole", "killed")]
    assert ends[0].orders == ends[1].orders
    assert ends[0].files["model.safetensors"] == ends[1].files["model.safetensors"]  # bit for bit
