"""Run every benchmark at its smallest size: `python benchmarks/NAME.py --smoke` must end well within its time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300


def main() -> int:
    """Run them one after the other; 1 where one fails."""
    failed = []
    scripts = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_"))
    for script in scripts:
        start = time.monotonic()
        command = [sys.executable, str(script), "--smoke"]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=SECONDS, capture_output=True, text=True, check=False)
            complaint = "" if done.returncode == 0 else done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            complaint = f"took longer than {SECONDS} s"
        print(f"{script.name}: {'ok' if not complaint else 'failed'} ({time.monotonic() - start:.1f} s)")
        if complaint:
            failed.append(script)
            print(complaint)
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main())
