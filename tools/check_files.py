"""Every Python file has at most 400 lines; those above the aim of 250 are named as a hint."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "tools", "benchmarks", "experiments", "docs")
CEILING = 400
AIM = 250


def main() -> int:
    """Count the lines of all Python files; 1 where one is over the ceiling."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    too_long = [path for path in paths if lengths[path] > CEILING]
    for path, count in sorted(lengths.items(), key=lambda item: -item[1]):
        if count > AIM:
            remark = f"the ceiling is {CEILING}" if count > CEILING else f"the aim is {AIM}"
            print(f"{path.relative_to(ROOT)}: {count} lines; {remark}")
    print(f"{len(paths)} files, {len(too_long)} over {CEILING} lines")
    return 1 if too_long or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
