"""Kill a training run, resume it, and compare its end with that of the uninterrupted run, bit for bit.

    python experiments/kill_resume.py --points 100 --out experiments/results/kill_resume

The run is a small one on `digits` with three cuts, a guard with pending probes, and a checkpoint every 7 steps. It is
killed with SIGKILL in one of four windows:

* anywhere: once the run has come to a random step, a random fraction of a second later;
* cut: inside `compress_`; write: while a checkpoint's files are written and renamed; save: from the moment a
  checkpoint is begun (the log brought to disk, states collected) to the removal of older ones.

In the last three the process kills itself at a function call or return (of Python or C code, as `sys.setprofile` tells
them) that is drawn from all those inside the window in the uninterrupted run. Compared are all tensors of the final
checkpoint (weights, optimizer, compressor, random states), its structure, and metrics.jsonl, without wall-clock fields.
The processes are forked from one that has only imported the library, which saves its start-up time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STEPS = 140
ARGUMENTS = [
    "train", "digits", "--quiet", "--blocks", "1", "--width", "8", "--order", "24", "--batch-size", "16",
    "--steps", str(STEPS), "--threads", "1", "--seed", "0", "--lr", "0.01", "--at", "30,60,90", "--orders", "16,10,6",
    "--guard", "0.9", "--guard-probe", "12", "--checkpoint-every", "7", "--eval-every", "20",
    "--set", "training.log_every=5", "--set", "output.tensorboard=false", "--set", "output.pictures=false",
]  # fmt: skip
WINDOWS = {
    "cut": ("compressm.training.trained", "compress_"),
    "write": ("compressm.checkpoint.saving", "write_folder"),
    "save": ("compressm.cli.recorder", "Recorder.save"),
}
ANYWHERE = "anywhere"


@dataclass(frozen=True)
class Aim:
    """Where to kill: in a window, at event number `event` of its `call`-th call; anywhere: at a step, after a delay."""

    window: str
    call: int = 0
    event: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One kill: where it was aimed, where the run stood, from where it went on, and whether the ends are equal."""

    aim: Aim
    killed: bool
    last_record: int | None
    resumed_from: int | None
    weights_equal: bool
    metrics_equal: bool

    @property
    def equal(self) -> bool:
        return self.weights_equal and self.metrics_equal


class Events:
    """Counts the calls and returns of functions inside a window, and may kill the process at one of them."""

    def __init__(self, window: str, aim: Aim | None = None) -> None:
        self.counts: list[int] = []
        self._aim = aim
        module_name, path = WINDOWS[window]
        owner: Any = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        self._real: Callable[..., Any] = getattr(owner, name)
        events = self

        def watched(*args: Any, **kwargs: Any) -> Any:
            return events.call(*args, **kwargs)

        setattr(owner, name, watched)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the window's function with the events counted."""
        self.counts.append(0)
        aimed = self._aim is not None and self._aim.call == len(self.counts)
        last = self._aim.event if self._aim is not None and aimed else -1

        def count(frame: object, kind: str, argument: object) -> None:
            self.counts[-1] += 1
            if self.counts[-1] == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            return self._real(*args, **kwargs)
        finally:
            sys.setprofile(None)
            if aimed:
                os.kill(os.getpid(), signal.SIGKILL)  # the last event of all is its end


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
    from compressm.cli.metrics import read_metrics, without_clock

    ends = [run / "checkpoints" / f"step-{STEPS:08d}" for run in (folder, reference)]
    files = [[(end / name).read_bytes() for name in ("model.safetensors", "training.safetensors")] for end in ends]
    bodies = [without_clock(json.loads((end / "structure.json").read_text())["body"]) for end in ends]
    for body in bodies:
        body["extra"].pop("metrics_bytes")  # the log holds wall-clock fields
    metrics = [without_clock(read_metrics(run / "metrics.jsonl")) for run in (folder, reference)]
    return files[0] == files[1] and bodies[0] == bodies[1], metrics[0] == metrics[1]


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


def kill_inside(aim: Aim, *arguments: str) -> int:
    """Run the command line in a process that kills itself in a window; its exit code, -9 where it was killed."""
    command = [sys.executable, __file__, "--aim", aim.window, str(aim.call), str(aim.event), *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def fork(work: Callable[[], int]) -> int:
    """Start `work` in a child process; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = work()
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    """The exit code of a child, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(*arguments: str, aim: Aim | None = None) -> int:
    """The command line in this process, which kills itself where `aim` says."""
    from compressm.cli.app import run as command_line

    if aim is not None:
        Events(aim.window, aim)
    return command_line(list(arguments))


def import_all(base: Path) -> None:
    """Import in this process what a run imports, so that the children need not."""
    record = base / "modules.json"

    def work() -> int:
        code = run(*ARGUMENTS, "--run", str(base / "first"))
        record.write_text(json.dumps(list(sys.modules)))
        return code

    if wait(fork(work)) != 0:
        raise SystemExit("The first run failed.")
    for name in json.loads(record.read_text()):
        with suppress(ImportError):
            importlib.import_module(name)


def measure(base: Path) -> dict[str, list[int]]:
    """How many events each call of each window has in the uninterrupted run."""
    counts: dict[str, list[int]] = {}
    for window in WINDOWS:
        folder, record = base / f"measured-{window}", base / f"{window}.json"

        def work(window: str = window, folder: Path = folder, record: Path = record) -> int:
            events = Events(window)
            code = run(*ARGUMENTS, "--run", str(folder))
            record.write_text(json.dumps(events.counts))
            return code

        if wait(fork(work)) != 0:
            raise SystemExit("The measured run failed.")
        counts[window] = json.loads(record.read_text())
        shutil.rmtree(folder)
    return counts


def draw(window: str, counts: dict[str, list[int]], generator: random.Random) -> Aim:
    """A moment in a window."""
    if window == ANYWHERE:
        return Aim(window, generator.randint(-1, STEPS - 1), delay=generator.uniform(0, 0.15))
    call = generator.randint(1, len(counts[window]))
    return Aim(window, call, generator.randint(1, counts[window][call - 1]))


def one_point(folder: Path, reference: Path, aim: Aim) -> Outcome:
    """Start, kill, resume, compare."""
    arguments = [*ARGUMENTS, "--run", str(folder)]
    if aim.window == ANYWHERE:
        child = fork(lambda: run(*arguments))
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not os.waitid(os.P_PID, child, options) and not (folder.exists() and newest(folder, -1) >= aim.call):
            time.sleep(0.001)
        time.sleep(aim.delay)
        os.kill(child, signal.SIGKILL)
        killed = wait(child) == -signal.SIGKILL
    else:
        killed = wait(fork(lambda: run(*arguments, aim=aim))) == -signal.SIGKILL
    at, resumed_from = last_record(folder), newest(folder)
    if wait(fork(lambda: run("train", "--quiet", "--resume", str(folder)))) != 0:
        raise SystemExit(f"The run in {folder} could not be resumed.")
    return Outcome(aim, killed, at, resumed_from, *compare(folder, reference))


def table(outcomes: list[Outcome]) -> list[list[object]]:
    """One row a window: kills, of those before the first checkpoint, and equal ends."""
    rows: list[list[object]] = []
    for window in (ANYWHERE, *WINDOWS):
        found = [o for o in outcomes if o.aim.window == window]
        first = sum(o.resumed_from is None for o in found)
        equal = sum(o.equal for o in found)
        rows.append([window, len(found), sum(o.killed for o in found), first, equal])
    return rows


def main() -> int:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from smnist import markdown, write_record

    base = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    import_all(base)
    counts = measure(base)
    reference = base / "reference"
    if wait(fork(lambda: run(*ARGUMENTS, "--run", str(reference)))) != 0:
        raise SystemExit("The uninterrupted run failed.")
    generator, windows, outcomes = random.Random(options.seed), (ANYWHERE, *WINDOWS), []
    for point in range(options.points):
        folder = base / f"point-{point}"
        outcome = one_point(folder, reference, draw(windows[point % len(windows)], counts, generator))
        shutil.rmtree(folder)
        outcomes.append(outcome)
        print(point, outcome, flush=True)
    rows = table(outcomes)
    text = markdown(["window", "points", "killed inside", "before the first checkpoint", "equal to the bit"], rows)
    shutil.rmtree(base)
    events = {window: sum(values) for window, values in counts.items()}
    results = {"events": events, "points": [asdict(outcome) for outcome in outcomes]}
    command = f"python experiments/kill_resume.py --points {options.points} --seed {options.seed}"
    write_record(options.out, command, results, text)
    return 0 if all(outcome.equal for outcome in outcomes) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--aim"]:
        chosen, number, at, *rest = sys.argv[2:]
        sys.exit(run(*rest, aim=Aim(chosen, int(number), int(at))))
    sys.exit(main())
