"""The library's recurrences against an associative scan: a whole training step, and the forms shape by shape.

    python benchmarks/scan_forms.py            # the sequential MNIST step (batch 50, L 784, H 8, N 256) and the table
    python benchmarks/scan_forms.py --smoke    # tiny shapes, a few seconds

The step is everything a training loop does: forward, cross entropy, backward, Adam. Both models share every weight
and everything but the recurrence; steps of the two alternate, so that a busy machine slows both. Peak memory is the
growth of the resident set over three steps, each kind in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _associative_scan import ScanLRU
from _report import RESULTS, table, write

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.ops import Form, choose_form, diagonal_lti, keep_freed_memory

KINDS = {"library": LRU, "associative scan": ScanLRU}


@dataclass(frozen=True)
class Setting:
    """Sizes of the training step and how often to repeat it."""

    batch: int = 50
    length: int = 784
    width: int = 8
    order: int = 256
    rounds: int = 15
    steps_a_round: int = 3  # of the library; the scan makes one


SMOKE = Setting(batch=4, length=50, order=16, rounds=2)
# batch, length, width, order
SHAPES = [
    (50, 784, 8, 256),
    (50, 784, 8, 28),
    (4, 784, 8, 256),
    (1, 4096, 8, 64),
    (16, 256, 16, 64),
    (16, 256, 32, 64),
    (16, 256, 64, 64),
    (16, 512, 128, 64),
    (8, 512, 256, 192),
]
SMOKE_SHAPES = [(2, 30, 2, 4), (1, 20, 40, 4)]


def training_step(kind: str, setting: Setting) -> Callable[[], None]:
    """One step of training of a sequential MNIST model with this recurrence."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(width=setting.width, order=setting.order))
    if kind != "library":
        replacement = KINDS[kind](setting.width, setting.order)
        replacement.load_state_dict(model.blocks[0].ssm.state_dict())
        model.blocks[0].ssm = replacement
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    x, labels = torch.randn(setting.batch, setting.length, 1), torch.randint(10, (setting.batch,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def check_agreement(setting: Setting) -> None:
    """Stop unless both recurrences compute the same function."""
    ours = LRU(setting.width, setting.order)
    scan = ScanLRU(setting.width, setting.order)
    scan.load_state_dict(ours.state_dict())
    u = torch.randn(2, setting.length, setting.width)
    error = float((ours(u) - scan(u)).detach().abs().max())
    if error > 1e-3:
        raise SystemExit(f"The two recurrences differ by {error:.3g}; nothing was measured.")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_steps(setting: Setting) -> list[dict[str, object]]:
    """Median and least time of a step, steps alternating, and peak memory, for each kind."""
    steps = {kind: training_step(kind, setting) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(setting.rounds + 1):
        for kind, step in steps.items():
            for _ in range(setting.steps_a_round if kind == "library" else 1):
                elapsed = seconds(step)
                if round_ > 0:  # the first round warms up
                    times[kind].append(elapsed)
    scan = times["associative scan"]
    return [
        {
            "recurrence": kind,
            "median ms": 1e3 * statistics.median(values),
            "least ms": 1e3 * min(values),
            "median / scan's": statistics.median(values) / statistics.median(scan),
            "least / scan's": min(values) / min(scan),
            "peak memory MB": peak_memory(kind, setting),
        }
        for kind, values in times.items()
    ]


def peak_memory(kind: str, setting: Setting) -> float:
    """Growth of the resident set over three training steps, in MB, measured in a fresh process."""
    sizes = [str(n) for n in (setting.batch, setting.length, setting.width, setting.order)]
    command = [sys.executable, __file__, "--memory-of", kind, *sizes]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(kind: str, sizes: list[int]) -> None:
    batch, length, width, order = sizes
    torch.set_num_threads(1)
    training_step(kind, SMOKE)()  # what the first step of a process loads
    step = training_step(kind, Setting(batch, length, width, order))
    before = peak_resident_mb()
    for _ in range(3):
        step()
    print(peak_resident_mb() - before)


def peak_resident_mb() -> float:
    """The largest resident set so far. getrusage would start from the parent's: Linux hands it on to children."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_form(batch: int, length: int, width: int, order: int, repeats: int) -> dict[str, object]:
    """Forward and backward of the recurrence alone, in both fast forms and by the scan."""
    torch.manual_seed(0)
    layer, scan = LRU(width, order), ScanLRU(width, order)
    u = torch.randn(batch, length, width, requires_grad=True)

    def library(form: Form) -> Callable[[], object]:
        def call() -> object:
            nu, theta, gamma = layer.nu_log.exp(), layer.theta_log.exp(), layer.gamma_log.exp()[:, None]
            b_re, b_im = gamma * layer.B_re, gamma * layer.B_im
            y = diagonal_lti(nu, theta, b_re, b_im, layer.C_re, layer.C_im, u, form=form, feedthrough=layer.D)
            return torch.autograd.grad(y.sum(), [u, *layer.parameters()])

        return call

    calls: dict[str, Callable[[], object]] = {
        "convolution ms": library(Form.CONVOLUTION),
        "chunked ms": library(Form.CHUNKED),
        "scan ms": lambda: torch.autograd.grad(scan(u).sum(), [u, *scan.parameters()]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            elapsed = seconds(call)
            if round_ > 0:
                times[name].append(1e3 * elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    chosen = choose_form(batch, length, width, width, order, training=True)
    return {
        "batch": batch,
        "L": length,
        "H": width,
        "N": order,
        **medians,
        "chosen": chosen.value,
        "chosen / best": medians[f"{chosen.value} ms"] / min(medians["convolution ms"], medians["chunked ms"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results are printed, not kept")
    parser.add_argument("--threads", type=int, help="number of threads (torch's default otherwise)")
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="alternations of the training steps")
    parser.add_argument("--memory-of", nargs=5, metavar=("KIND", "BATCH", "L", "H", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of[0], [int(n) for n in options.memory_of[1:]])
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    setting = SMOKE if options.smoke else Setting(rounds=options.rounds)
    check_agreement(setting)
    step = f"One training step: batch {setting.batch}, L {setting.length}, H {setting.width}, N {setting.order}"
    shapes, repeats = (SMOKE_SHAPES, 1) if options.smoke else (SHAPES, 5)
    measured = {
        step: measure_steps(setting),
        "Recurrence alone, forward and backward": [measure_form(*shape, repeats) for shape in shapes],
    }
    for heading, rows in measured.items():
        print(f"{heading}\n{table(rows)}\n")
    with tempfile.TemporaryDirectory() as scratch:
        name = f"scan_forms_threads_{torch.get_num_threads()}"
        path = write(name, "Recurrences", measured, Path(scratch) if options.smoke else RESULTS)
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
