"""A model trained without cuts, then cut once by `compressm compress`: test score right after, nothing trained again.

    python experiments/finished.py --out experiments/results/finished
    python experiments/finished.py --dataset fsdd --orders 8 16 --steps 600

Each seed is one run of `compressm train DATASET --no-compress`. Every cut is a command of its own on its checkpoint,
with the options of its column, and every score that of `compressm eval` on the test split.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from smnist import markdown, mean_and_spread, write_record

from compressm.cli.app import run
from compressm.cli.console import Terminal
from compressm.cli.loading import load_data_of
from compressm.cli.objective import Objective
from compressm.cli.stored import evaluate_stored, open_stored

KINDS = {
    "`--preset paper`": ["--preset", "paper"],
    "`--no-refit`": ["--no-refit"],
    "no options": [],
    "`--batches 8`": ["--batches", "8"],
}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", type=int, nargs="+", default=[4, 6, 8, 12])
    parser.add_argument("--steps", type=int, help="of training; else the data set's own number")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    steps = [] if args.steps is None else ["--steps", args.steps]
    whole: list[float] = []
    found: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for seed in args.seeds:
            folder = Path(place) / str(seed)
            command("train", args.dataset, "--no-compress", "--seed", seed, "--threads", 1, "--run", folder, *steps)
            whole.append(score(folder))
            print(f"seed {seed}: uncut {whole[-1]:.3f}", flush=True)
            for order in args.orders:
                for number, (name, options) in enumerate(KINDS.items()):
                    target = folder / "cut" / f"{order}-{number}"
                    command("compress", folder, "--order", order, "--out", target, *options)
                    found.setdefault((order, name), []).append(score(target))
                    print(f"  {order} states, {name}: {found[order, name][-1]:.3f}", flush=True)
    rows = [[r, *(mean_and_spread(found[r, name], 3) for name in KINDS)] for r in args.orders]
    table = f"{args.dataset}, uncut: {mean_and_spread(whole, 3)}\n\n" + markdown(["states", *KINDS], rows)
    results = {"uncut": whole, "cut": [{"order": r, "options": k, "score": v} for (r, k), v in found.items()]}
    write_record(args.out, "python experiments/finished.py", results, table)


def command(*arguments: object) -> None:
    """Run `compressm` without its tables; RuntimeError where it fails."""
    with redirect_stdout(io.StringIO()):
        code = run([*map(str, arguments), "--quiet"])
    if code:
        raise RuntimeError(f"compressm {' '.join(map(str, arguments))} ended with {code}.")


def score(path: Path) -> float:
    """The test metric of a stored model."""
    terminal = Terminal(quiet=True)
    stored = open_stored(path, terminal)
    dataset = load_data_of(stored, None, terminal)
    return evaluate_stored(stored, dataset, dataset.test, terminal)[Objective.of(dataset).metric]


if __name__ == "__main__":
    main()
