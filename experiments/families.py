"""Every kind of layer on real data: a short run with two cuts in it, against the same run uncut.

    COMPRESSM_DATA=... python experiments/families.py --out experiments/results/families --page docs/results.md

Each layer starts with 32 stored states and is cut to 16 and to 8 on the way, by the command line's own `train`. The
validation score is taken right before and right after the last cut, the test score at the end of both runs: accuracy,
or for measured systems the normalised simulation error (NRMSE, smaller is better; see docs/howto/data-sets.md), as
means and standard deviations over seeds. Runs are short and validation splits small (their sizes are in the table):
this shows that a family works, not which one is better. `--only` measures some kinds anew and takes the other rows from
the record at `--out`. `--page` puts the table into a page, between the lines that MARKS names, with command, date,
machine and commits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smnist import machine, markdown, mean_and_spread, write_record

from compressm.cli.app import run
from compressm.cli.metrics import read_metrics
from compressm.cli.results import Results
from compressm.data import Task, load_dataset

ORDER, ORDERS = 32, (16, 8)
SCORES = "before", "after", "end", "uncut"
MARKS = "<!-- families: begin -->\n", "<!-- families: end -->\n"


@dataclass(frozen=True)
class Run:
    """One family on one data set."""

    layer: str
    data: str
    steps: int = 300
    lr: float = 4e-3
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The layer with what is special about it."""
        return " ".join((self.layer, *self.options.values()))


RUNS = (
    Run("lru", "fsdd", 400, 1e-2),
    Run("dense", "cascaded-tanks"),
    Run("s5", "digits", 600, 1e-2),
    Run("s4d", "ucr:ACSF1", 300, 1e-2),
    Run("s4", "ucr:GunPoint"),
    Run("dss", "digits", 600, 1e-2),
    Run("lssl", "ucr:ItalyPowerDemand", 400),
    Run("rotations", "wiener-hammerstein"),
    Run("linoss", "pick-and-place", options={"model.discretization": "im"}),
    Run("linoss", "digits", 600, 1e-2, options={"model.discretization": "imex"}),
    Run("d-linoss", "ucr:BasicMotions"),
)


def train(case: Run, seed: int, folder: Path, cut: bool) -> None:
    """One run of the command line; RuntimeError where it fails."""
    first, second = case.steps // 3, case.steps // 2
    cuts = ["--at", f"{first},{second}", "--orders", ",".join(map(str, ORDERS))] if cut else ["--no-compress"]
    sets = {"output.tensorboard": "false", "output.pictures": "false", **case.options}
    arguments = [
        "train", case.data, "--layer", case.layer, "--order", str(ORDER), "--width", "16", "--blocks", "1",
        "--batch-size", "16", "--steps", str(case.steps), "--eval-every", str(case.steps), "--threads", "1",
        "--lr", str(case.lr), "--seed", str(seed), "--quiet", "--run", str(folder), *cuts,
        *(word for item in sets.items() for word in ("--set", "=".join(item))),
    ]  # fmt: skip
    if run(arguments) != 0:
        raise RuntimeError(f"compressm {' '.join(arguments)} failed")


def measure(case: Run, seeds: Sequence[int]) -> dict[str, Any]:
    """The scores of one family, with and without cuts, a list over seeds each."""
    dataset = load_dataset(case.data)
    metric = "accuracy" if dataset.task is Task.CLASSIFY else "nrmse"
    started = time.perf_counter()
    each = [scores(case, seed, metric) for seed in seeds]
    return {
        "layer": case.name,
        "data": case.data,
        "metric": metric,
        "steps": case.steps,
        "lr": case.lr,
        "seeds": list(seeds),
        "validation": dataset.validation.cases,
        "test": dataset.test.cases,
        **{key: [found[key] for found in each] for key in SCORES},
        "seconds": time.perf_counter() - started,
        "machine": machine(),
    }


def scores(case: Run, seed: int, metric: str) -> dict[str, float]:
    """The scores of one seed."""
    with tempfile.TemporaryDirectory() as scratch:
        cut, uncut = Path(scratch) / "cut", Path(scratch) / "uncut"
        train(case, seed, cut, True)
        train(case, seed, uncut, False)
        records = read_metrics(cut / "metrics.jsonl")
        around = {m: [r[metric] for r in records if r.get("moment") == m] for m in ("before_cut", "after_cut")}
        end, full = Results.read(cut).test[metric], Results.read(uncut).test[metric]
    if any(len(found) != len(ORDERS) for found in around.values()):
        raise RuntimeError(f"{case.name}, seed {seed}: {len(around['after_cut'])} of {len(ORDERS)} cuts were made")
    return {"before": around["before_cut"][-1], "after": around["after_cut"][-1], "end": end, "uncut": full}


def recorded(out: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the record at `out` (without suffix), by layer and data."""
    if out is None or not out.with_suffix(".json").exists():
        return {}
    rows = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["results"]
    return {(row["layer"], row["data"]): row for row in rows}


def table(found: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    rows = [
        [
            str(r["layer"]),
            str(r["data"]),
            str(r["metric"]),
            f"{r['validation']} / {r['test']}",
            *(mean_and_spread(r[key], 3) for key in SCORES),
        ]
        for r in found
    ]
    head = [
        "layer",
        "data",
        "score",
        "cases",
        "before the last cut",
        "right after",
        "test, cut",
        "test, uncut",
    ]
    return markdown(head, rows)


def measured_on(found: list[dict[str, Any]]) -> str:
    """Dates, commits and so on of all rows, each once."""
    names = found[0]["machine"] if found else {}
    values = {name: sorted({str(row["machine"][name]) for row in found}) for name in names}
    return ", ".join(f"{name} {' / '.join(each)}" for name, each in values.items())


def put_into(page: Path, command: str, text: str, where: str) -> None:
    """Replace what lies between the marks; ValueError where the page has them not."""
    before, found, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not found or not ended:
        raise ValueError(f"{page} has no lines {' and '.join(mark.strip() for mark in MARKS)}.")
    page.write_text(f"{before}{MARKS[0]}{text}\n\n`{command}` ({where}).\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    """Run all families, or those named; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, help="kinds of layers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    rows, failed = recorded(args.out), []
    for case in RUNS:
        if args.only is None or case.layer in args.only:
            try:
                rows[case.name, case.data] = measure(case, args.seeds)
                print(rows[case.name, case.data], flush=True)
            except RuntimeError as error:
                failed.append(case.name)
                print(error, file=sys.stderr, flush=True)
    found = [rows[case.name, case.data] for case in RUNS if (case.name, case.data) in rows]
    text, command = table(found), " ".join(["python", *sys.argv])
    write_record(None if failed else args.out, command, found, text)
    if args.page is not None and not failed:
        put_into(args.page, command, text, measured_on(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
