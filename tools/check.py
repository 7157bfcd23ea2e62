"""Run the checks that a change must pass: `python tools/check.py all`, or one of them by name.

Every check runs even where an earlier one failed. A summary follows, and pytest's closing line comes last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CODE = ["src", "tests", "tools", "benchmarks", "experiments"]


@dataclass(frozen=True)
class Check:
    """A named command; the output of a quiet one is shown only where it fails."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    quiet: bool = True


def checks() -> list[Check]:
    """All checks, quick ones first."""
    python = sys.executable
    code = [folder for folder in CODE if (ROOT / folder).is_dir()]
    return [
        Check("format", ((python, "-m", "ruff", "format", "--check", *code),)),
        Check("lint", ((python, "-m", "ruff", "check", *code),)),
        Check("files", ((python, "tools/check_files.py"),)),
        Check("names", ((python, "tools/check_public_names.py"),)),
        Check("layers", ((str(BIN / "lint-imports"), "--no-cache"),)),
        Check("types", ((str(BIN / "basedpyright"), "--pythonpath", python),)),
        Check("docs", ((python, "tools/check_snippets.py"), (python, "-m", "mkdocs", "build", "--strict", "--quiet"))),
        Check("bench-smoke", ((python, "tools/bench_smoke.py"),)),
        Check("test", ((python, "-m", "pytest", "-n", "2", "--dist", "worksteal"),), quiet=False),
    ]


def main(arguments: list[str]) -> int:
    """Run the checks named on the command line; 0 where all passed."""
    available = {check.name: check for check in checks()}
    names = list(available) if arguments == ["all"] else arguments
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        print(
            f"usage: check.py all | {' | '.join(available)}" + (f" (unknown: {', '.join(unknown)})" if unknown else "")
        )
        return 2
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUTF8": "1"}
    results = []
    for name in names:
        start = time.monotonic()
        passed, closing = run(available[name], environment)
        results.append((name, passed, time.monotonic() - start, closing))
        print(f"{'ok    ' if passed else 'FAILED'} {name} ({results[-1][2]:.1f} s)", flush=True)
    if len(results) > 1:
        summarize(results)
    return 0 if all(passed for _, passed, _, _ in results) else 1


def run(check: Check, environment: dict[str, str]) -> tuple[bool, str]:
    """Whether the check's commands all succeeded, and the last line that they printed."""
    passed, closing = True, ""
    for command in check.commands:
        printed = []
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            for line in process.stdout or ():
                printed.append(line)
                if not check.quiet:
                    print(line, end="", flush=True)
        if process.returncode != 0:
            passed = False
            if check.quiet:
                print("".join(printed), end="", flush=True)
        closing = printed[-1].strip() if printed else closing
    return passed, closing


def summarize(results: list[tuple[str, bool, float, str]]) -> None:
    """Print one line for each check, then the closing line of the tests."""
    print("\nSummary")
    for name, passed, seconds, _ in results:
        print(f"  {'ok    ' if passed else 'FAILED'}  {name:<12} {seconds:7.1f} s")
    for name, _, _, closing in results:
        if name == "test":
            print(closing, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
