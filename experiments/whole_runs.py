"""Whole runs of the command line with the same cuts in each preset: accuracy before and after cuts, and at the end.

    python experiments/whole_runs.py --out experiments/results/whole_runs

Sequential MNIST with the paper's model (1 block, H = 8, N = 256, batch 50), 4,000 steps, cuts at 10, 20, 30 and 40 % of
the run to the same orders in every preset. Run folders that are complete are read and not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from smnist import markdown, mean_and_spread, write_record


def train(preset: str, seed: int, args: argparse.Namespace) -> Path:
    """The complete run folder of one preset and seed."""
    folder = Path(args.runs) / f"{preset}-{seed}"
    if not (folder / "results.json").exists():
        cuts = [str(round(args.steps * part)) for part in (0.1, 0.2, 0.3, 0.4)]
        command = [sys.executable, "-m", "compressm", "train", "smnist", "--preset", preset, "--seed", str(seed)]
        command += ["--steps", str(args.steps), "--at", ",".join(cuts), "--orders", ",".join(map(str, args.orders))]
        subprocess.run([*command, "--run", str(folder), "--quiet"], check=True)
    return folder


def read(folder: Path) -> dict[str, object]:
    """Validation accuracy before and after each cut, orders, and the test accuracy at the end, in per cent."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "evaluation"]
    return {
        "before": [100 * s["accuracy"] for s in scores if s["moment"] == "before_cut"],
        "after": [100 * s["accuracy"] for s in scores if s["moment"] == "after_cut"],
        "test": 100 * json.loads((folder / "results.json").read_text())["test"]["accuracy"],
    }


def main() -> None:
    """Run what is missing and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["paper", "white", "data", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--orders", type=int, nargs=4, default=[118, 55, 26, 12])
    parser.add_argument("--runs", default="runs/whole_runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, results = [], {}
    for preset in args.presets:
        runs = [read(train(preset, seed, args)) for seed in args.seeds]
        results[preset] = runs
        cuts = [
            " -> ".join(mean_and_spread([run[key][k] for run in runs]) for key in ("before", "after"))  # type: ignore[index]
            for k in range(len(args.orders))
        ]
        rows.append([preset, *cuts, mean_and_spread([float(run["test"]) for run in runs])])  # type: ignore[arg-type]
    table = markdown(["preset", *(f"cut to {order}" for order in args.orders), "test at the end"], rows)
    write_record(args.out, "python experiments/whole_runs.py", results, table)


if __name__ == "__main__":
    main()
