"""Kill a training run at random moments, resume it, and compare with the uninterrupted run, bit for bit.

    python experiments/kill_resume.py --points 20

The run is a small one on `digits` with three cuts, a guard with pending probes, and a checkpoint every 7 steps. Each
point waits until the run has come to a random step, then for a random fraction of a second, and sends SIGKILL; then
the run is resumed to its end. Compared are all tensors of the final checkpoint (weights, optimizer, compressor, random
states), its structure, and metrics.jsonl without wall-clock fields.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

STEPS = 140
ARGUMENTS = [
    "train", "digits", "--quiet", "--blocks", "1", "--width", "8", "--order", "24", "--batch-size", "16",
    "--steps", str(STEPS), "--threads", "1", "--seed", "0", "--lr", "0.01", "--at", "30,60,90", "--orders", "16,10,6",
    "--guard", "0.9", "--guard-probe", "12", "--checkpoint-every", "7", "--eval-every", "20",
    "--set", "training.log_every=5", "--set", "output.tensorboard=false", "--set", "output.pictures=false",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One kill: where the run was, from where it went on, and whether its end is that of the uninterrupted run."""

    wanted_step: int
    killed_at: int | None
    resumed_from: int | None
    weights_equal: bool
    metrics_equal: bool

    @property
    def equal(self) -> bool:
        return self.weights_equal and self.metrics_equal


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "compressm", *arguments], env=environment, stdout=subprocess.DEVNULL)


def kill_at(folder: Path, step: int, delay: float, *arguments: str) -> None:
    """Run the command line until a checkpoint of `step` or later is there (-1: the folder), and kill it a bit later."""
    process = spawn(*arguments)
    try:
        while process.poll() is None and not (folder.exists() and newest(folder, -1) >= step):
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def newest(folder: Path, default: int | None = None) -> int | None:
    """The step of the newest checkpoint of a run."""
    steps = [int(p.name[5:]) for p in (folder / "checkpoints").glob("step-" + "[0-9]" * 8)]
    return max(steps, default=default)


def last_record(folder: Path) -> int | None:
    """The step of the last record in metrics.jsonl."""
    from compressm.cli.metrics import read_metrics

    records = read_metrics(folder / "metrics.jsonl")
    return records[-1]["step"] if records else None


def compare(folder: Path, reference: Path) -> tuple[bool, bool]:
    """Whether the final checkpoints, and the metrics without wall-clock fields, are equal."""
    from compressm.checkpoint import read_structure
    from compressm.cli.metrics import read_metrics, without_clock

    ends = [run / "checkpoints" / f"step-{STEPS:08d}" for run in (folder, reference)]
    files = [[(end / name).read_bytes() for name in ("model.safetensors", "training.safetensors")] for end in ends]
    extras = [without_clock(read_structure(end).extra["loop"]) for end in ends]
    metrics = [without_clock(read_metrics(run / "metrics.jsonl")) for run in (folder, reference)]
    return files[0] == files[1] and extras[0] == extras[1], metrics[0] == metrics[1]


def one_point(folder: Path, reference: Path, step: int, delay: float) -> Outcome:
    """Start, kill, resume, compare."""
    kill_at(folder, step, delay, *ARGUMENTS, "--run", str(folder))
    killed_at, resumed_from = last_record(folder), newest(folder)
    command = ["train", "--quiet", "--resume", str(folder)]
    if spawn(*command).wait() != 0:
        raise SystemExit(f"The run in {folder} could not be resumed.")
    return Outcome(step, killed_at, resumed_from, *compare(folder, reference))


def main() -> int:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    base = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    reference = base / "reference"
    if spawn(*ARGUMENTS, "--run", str(reference)).wait() != 0:
        raise SystemExit("The uninterrupted run failed.")
    print("| point | waited for step | last record | resumed from | weights equal | metrics equal |")
    print("| ---: | ---: | ---: | ---: | --- | --- |")
    equal = 0
    for point in range(options.points):
        folder = base / f"point-{point}"
        outcome = one_point(folder, reference, generator.randint(-1, STEPS - 1), generator.uniform(0, 0.15))
        shutil.rmtree(folder)
        equal += outcome.equal
        cells = (point, outcome.wanted_step, outcome.killed_at, outcome.resumed_from)
        print(f"| {' | '.join(map(str, cells))} | {outcome.weights_equal} | {outcome.metrics_equal} |", flush=True)
    print(f"\n{equal} of {options.points} runs ended exactly as the uninterrupted one.")
    shutil.rmtree(base)
    return 0 if equal == options.points else 1


if __name__ == "__main__":
    sys.exit(main())
