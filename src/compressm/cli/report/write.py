"""The report of a run: tables on the terminal, report.md and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from compressm.cli.console import Terminal
from compressm.cli.folder import RunFolder
from compressm.cli.metrics import read_metrics
from compressm.cli.objective import Objective
from compressm.cli.report.pictures import draw_all
from compressm.cli.report.rows import cuts_table, orders_table, result_table
from compressm.cli.report.show import markdown_table, print_table
from compressm.cli.report.summary import RunSummary, summarise
from compressm.cli.report.time_rows import time_table
from compressm.cli.results import Results


def report(folder: RunFolder, objective: Objective, terminal: Terminal) -> RunSummary:
    """Show the tables of a finished run and write report.md and the pictures; may be repeated."""
    results = Results.read(folder.path)
    summary = summarise(read_metrics(folder.metrics), objective.metric, results)
    tables = [result_table(summary, objective), orders_table(summary), cuts_table(summary, objective)]
    if results.run is not None:
        tables.append(time_table(results.run))
    for table in tables:
        print_table(terminal.out, table)
    for step, reason in summary.skipped:
        terminal.out.print(f"No cut at step {step}: {reason}", soft_wrap=True)
    config = folder.config()
    pictures: Mapping[str, Path] = draw_all(folder, summary, objective) if config.output.pictures else {}
    lines = [f"# Run {folder.path.name}", ""]
    lines += [markdown_table(table) for table in tables]
    if summary.skipped:
        lines += [
            "## Cuts that were not made",
            "",
            *(f"- step {step}: {reason}" for step, reason in summary.skipped),
            "",
        ]
    lines += [
        f"## {title}\n\n![{title}]({path.relative_to(folder.path).as_posix()})\n" for title, path in pictures.items()
    ]
    place, board = shlex.quote(str(folder.path)), shlex.quote(str(folder.path / "tensorboard"))
    lines += [
        "## Go on from here",
        "",
        "```",
        f"compressm eval {place}",
        f"compressm analyze {place}",
        f"compressm compress {place} --discard 0.05",
        *([f"tensorboard --logdir {board}"] if config.output.tensorboard else []),
        "```",
        "",
        "The settings are in config.yaml; the figures above are in metrics.jsonl, and those measured at the end in "
        "results.json.",
        "",
    ]
    folder.report.write_text("\n".join(lines), encoding="utf-8")
    terminal.say(f"Report and pictures: {folder.report}")
    return summary
