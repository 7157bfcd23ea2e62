"""What `torch.compile` (Inductor) costs and gives: seconds until the first step is done, and the step with and without.

    python benchmarks/compiling.py              # two sizes, about a minute
    python benchmarks/compiling.py --smoke      # one tiny size, without Inductor

A narrow model's recurrence is a convolution, in plain PyTorch where compiled; a wide one's is the chunked form, one
operator in the graph. Steps (forward, backward) with and without the compiler alternate; compiled code is not cached
between runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from _report import RESULTS, table, write
from torch import nn

from compressm.layers import ModelConfig, SequenceModel
from compressm.ops import keep_freed_memory

SIZES = [(8, 47, 784, 50), (128, 192, 784, 8)]  # H, N, L, batch
SMOKE_SIZES = [(4, 6, 40, 4)]


def measure(size: tuple[int, int, int, int], rounds: int, backend: str) -> dict[str, object]:
    """One row: seconds to compile, milliseconds of a step."""
    width, order, length, batch = size
    torch.compiler.reset()
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(inputs=1, outputs=10, width=width, order=order, blocks=1))
    x, y = torch.randn(batch, length, 1), torch.randint(0, 10, (batch,))
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def step(run: nn.Module) -> float:
        start = time.perf_counter()
        nn.functional.cross_entropy(run(x), y).backward()
        return time.perf_counter() - start

    first = step(compiled)
    step(model)
    times = [(step(compiled), step(model)) for _ in range(rounds)]
    one, other = (statistics.median(each) for each in zip(*times, strict=True))
    return {
        "H": width,
        "N": order,
        "L": length,
        "batch": batch,
        "first step, compiled (s)": first,
        "step, compiled (ms)": 1e3 * one,
        "step, not compiled (ms)": 1e3 * other,
        "compiled / not": one / other,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    sizes, rounds = (SMOKE_SIZES, 2) if options.smoke else (SIZES, options.rounds)
    backend = "aot_eager" if options.smoke else "inductor"
    rows = [measure(size, rounds, backend) for size in sizes]
    print(table(rows))
    folder = Path(tempfile.mkdtemp()) if options.smoke else RESULTS
    write("compiling", "torch.compile", {"One block, forward and backward": rows}, folder)


if __name__ == "__main__":
    main()
