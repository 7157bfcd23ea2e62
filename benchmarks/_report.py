"""What every benchmark writes beside its numbers: when, where and with what they were measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import compressm

RESULTS = Path(__file__).resolve().parent / "results"


def environment(threads: int | None = None) -> dict[str, object]:
    """Date, commit, machine, load, versions and command; `threads` where they are not those of this process."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "threads": threads or torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "compressm": getattr(compressm, "__version__", "unknown"),
            **{name: version(name) for name in ("jax", "jaxlib", "numba") if find_spec(name)},
        },
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def table(rows: list[dict[str, object]]) -> str:
    """Rows of one set of columns as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[c]) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    name: str,
    title: str,
    measured: dict[str, list[dict[str, object]]],
    folder: Path = RESULTS,
    threads: int | None = None,
    picture: str | None = None,
) -> Path:
    """Write `name`.json and `name`.md with one table for each heading of `measured`; returns the Markdown's path.

    `picture` is the name of a file in `folder` to be shown above the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = environment(threads)
    (folder / f"{name}.json").write_text(json.dumps({**where, "measured": measured}, indent=2) + "\n", encoding="utf-8")
    versions = where["versions"]
    assert isinstance(versions, dict)
    about = [
        f"* {where['date']}, {where['machine']}, {where['threads']} thread(s), load average {where['load_average']}",
        "* " + ", ".join(f"{k} {v}" for k, v in versions.items()) + f", commit {where['commit']}",
        f"* `{where['command']}`",
    ]
    tables = [f"## {heading}\n\n{table(rows)}" for heading, rows in measured.items()]
    path = folder / f"{name}.md"
    shown = [f"![{title}]({picture})"] if picture else []
    path.write_text("\n\n".join([f"# {title}", "\n".join(about), *shown, *tables]) + "\n", encoding="utf-8")
    return path


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """The commit measured, "changed" where files differ from it."""
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    others = [line for line in changes.stdout.splitlines() if "benchmarks/results/" not in line]
    return commit.stdout.strip() + (" (changed)" if others else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
