"""Every Python file has at most 400 lines; the longest ones above the aim of 250 are named as a hint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CEILING = 400
AIM = 250


def main() -> int:
    """Count the lines of the files that git knows or would add; 1 where one is over the ceiling."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    lengths = {name: lines(ROOT / name) for name in listing.stdout.splitlines() if (ROOT / name).is_file()}
    too_long = {name: count for name, count in lengths.items() if count > CEILING}
    for name, count in sorted(lengths.items(), key=lambda item: -item[1]):
        if count > AIM:
            print(f"{name}: {count} lines; {'at most ' + str(CEILING) if count > CEILING else f'aim for {AIM}'}")
    print(f"{len(lengths)} files, {len(too_long)} over {CEILING} lines")
    return 1 if too_long else 0


def lines(path: Path) -> int:
    """The number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    sys.exit(main())
