"""Whole runs of the command line with the same cuts in each preset: accuracy before and after cuts, and at the end.

    python experiments/whole_runs.py --out experiments/results/whole_runs

Sequential MNIST with the paper's model (1 block, H = 8, N = 256, batch 50), 4,000 steps, learning rate 1e-3, cuts at
10, 20, 30 and 40 % of the run. Validation accuracy around each cut, test accuracy at the end. Run folders that are
complete are read and not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from smnist import markdown, mean_and_spread, write_record

TO_12, TO_6 = (118, 55, 26, 12), (98, 38, 15, 6)
RUNS = {
    "paper": ("paper", TO_12),
    "data": ("data", TO_12),
    "default": ("default", TO_12),
    "default-half": ("default", TO_6),
}


def train(name: str, seed: int, args: argparse.Namespace) -> Path:
    """The complete run folder of one kind and seed."""
    preset, orders = RUNS[name]
    folder = Path(args.runs) / f"{name}-{seed}"
    if not (folder / "results.json").exists():
        cuts = [str(round(args.steps * part)) for part in (0.1, 0.2, 0.3, 0.4)]
        command = [sys.executable, "-m", "compressm", "train", "smnist", "--preset", preset, "--seed", str(seed)]
        command += ["--steps", str(args.steps), "--at", ",".join(cuts), "--orders", ",".join(map(str, orders))]
        subprocess.run([*command, "--run", str(folder), "--quiet"], check=True)
    return folder


def read(folder: Path) -> dict[str, Any]:
    """Validation accuracy before and after each cut, and the test accuracy at the end, in per cent."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "evaluation"]
    cuts = [line["report"]["layers"][0] for line in lines if line["kind"] == "cut"]
    return {
        "orders": [cut["order_after"] for cut in cuts],
        "gramians": [f"{cut['controllability']}/{cut['observability']}" for cut in cuts],
        "before": [100 * s["accuracy"] for s in scores if s["moment"] == "before_cut"],
        "after": [100 * s["accuracy"] for s in scores if s["moment"] == "after_cut"],
        "test": 100 * json.loads((folder / "results.json").read_text())["test"]["accuracy"],
    }


def main() -> None:
    """Run what is missing and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--runs", default="runs/whole_runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, results = [], {}
    for name in args.kinds:
        runs = [read(train(name, seed, args)) for seed in args.seeds]
        results[name] = dict(zip(map(str, args.seeds), runs, strict=True))
        cuts = [
            f"{RUNS[name][1][k]}: "
            + " → ".join(mean_and_spread([run[key][k] for run in runs]) for key in ("before", "after"))
            for k in range(4)
        ]
        rows.append([name, *cuts, mean_and_spread([run["test"] for run in runs])])
    table = markdown(["kind", "1st cut to", "2nd cut to", "3rd cut to", "4th cut to", "test at the end"], rows)
    write_record(args.out, "python experiments/whole_runs.py", results, table)


if __name__ == "__main__":
    main()
