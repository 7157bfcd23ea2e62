"""What to do with Adam's state at a cut: loss right after, after 10 and after 200 steps, for each policy.

    python experiments/optimizer_policy.py --out experiments/results/optimizer_policy

An LRU (N = 256, H = 8) is trained on sequential MNIST and cut once, under data-weighted real-output balancing; the same
cut is then followed under each policy on the same batches. The loss is the mean over 1,000 training sequences that the
steps do not use, in evaluation mode.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from smnist import Smnist, markdown, mean_and_spread, paper_model, training_step, write_record
from torch import nn
from torch.nn.functional import cross_entropy

from compressm import Calibration, CompressionSettings, FixedOrder, GramianSource, StatePolicy, compress_

HELD_OUT = range(900, 920)  # batches of the first epoch that no step uses


def held_out_loss(model: nn.Module, data: Smnist) -> float:
    """Mean cross entropy over the held-out sequences."""
    model.eval()
    with torch.no_grad():
        losses = [float(cross_entropy(model(x), y)) for x, y in (data.batch(k) for k in HELD_OUT)]
    model.train()
    return sum(losses) / len(losses)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--order", type=int, default=48)
    parser.add_argument("--after", type=int, nargs="+", default=[0, 10, 50, 200])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    before = []
    for seed in args.seeds:
        data, model = Smnist(seed), paper_model(seed)
        optimizer = torch.optim.Adam(model.parameters(), args.lr)
        calibration = Calibration(model, capture_gradients=False)
        for step in range(args.steps):
            if step == args.steps - 2:
                calibration.start()
            training_step(model, optimizer, *data.batch(step))
        calibration.stop()
        before.append(held_out_loss(model, data))
        for policy in StatePolicy:
            small, its_optimizer = copy.deepcopy((model, optimizer))
            settings = CompressionSettings(
                FixedOrder(args.order), observability=GramianSource.WHITE, optimizer_policy=policy
            )
            compress_(small, settings, optimizer=its_optimizer, calibration=calibration)
            torch.manual_seed(seed)
            for k in range(max(args.after) + 1):
                if k in args.after:
                    found.setdefault((policy.value, k), []).append(held_out_loss(small, data))
                training_step(small, its_optimizer, *data.batch(args.steps + k))
            print(seed, policy.value, [round(found[policy.value, k][-1], 4) for k in args.after], flush=True)
    rows = [[policy.value, *(mean_and_spread(found[policy.value, k], 4) for k in args.after)] for policy in StatePolicy]
    table = f"Before the cut: {mean_and_spread(before, 4)}\n\n"
    table += markdown(["policy", *(f"after {k} steps" for k in args.after)], rows)
    results = {"before": before, "after": [{"policy": p, "steps": k, "loss": v} for (p, k), v in found.items()]}
    write_record(args.out, "python experiments/optimizer_policy.py", results, table)


if __name__ == "__main__":
    main()
