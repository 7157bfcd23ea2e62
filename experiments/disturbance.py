"""Why kept states are fitted as if disturbed: a DSS on digits cut 32 -> 16 -> 8 in training, against 8 states at once.

    COMPRESSM_DATA=... python experiments/disturbance.py --out experiments/results/disturbance

One block of width 16, batches of 16, AdamW at 1e-2 (half of it for the layer) with cosine decay over 600 steps, cuts
before steps 200 and 300. All cut runs of a seed share the first 200 steps. The largest output weight is that right
after the second cut; the loss is the mean over the 20 training steps after the first. Accuracies are of the
validation and test sequences together (539).
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from smnist import markdown, mean_and_spread, training_step, write_record
from torch import nn

from compressm import BalancedSelection, Calibration, CompressionSettings, FixedOrder, compress_
from compressm.data.batching import Batcher
from compressm.data.registry import load_dataset
from compressm.layers import DSS
from compressm.layers.config import ModelConfig
from compressm.layers.model import SequenceModel

STEPS, CUTS = 600, {200: 16, 300: 8}
RATE = 1e-2


class Digits:
    """Batches, accuracy and training of one seed."""

    def __init__(self, seed: int) -> None:
        self.data, self.seed = load_dataset("digits"), seed
        self.batcher = Batcher(self.data, 16, seed)

    def start(self, order: int) -> tuple[SequenceModel, torch.optim.Optimizer]:
        """A model and its optimizer."""
        torch.manual_seed(self.seed)
        model = SequenceModel(ModelConfig(inputs=1, outputs=10, layer="dss", width=16, order=order, blocks=1))
        inside = list(layer_of(model).parameters())
        rest = [p for p in model.parameters() if all(p is not q for q in inside)]
        groups = [
            {"params": inside, "weight_decay": 0.0, "base": RATE / 2},
            {"params": rest, "weight_decay": 0.01, "base": RATE},
        ]
        return model, torch.optim.AdamW(groups, RATE)

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, start: int, end: int) -> list[float]:
        """The losses of the steps from `start` to `end`."""
        losses = []
        for step in range(start, end):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * (1 + math.cos(math.pi * step / STEPS)) / 2
            batch = self.batcher.training(step)
            losses.append(training_step(model, optimizer, batch.x, batch.y))
        return losses

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, reducer: BalancedSelection) -> None:
        """Cut as planned before `step`, under Gramians of the last two batches."""
        with Calibration(model) as calibration:
            for past in (step - 2, step - 1):
                batch = self.batcher.training(past)
                model.zero_grad()
                nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        model.zero_grad()
        settings = CompressionSettings(FixedOrder(CUTS[step]), reducer=reducer)
        compress_(model, settings, optimizer=optimizer, calibration=calibration)

    def accuracy(self, model: nn.Module) -> float:
        """Per cent of the validation and test sequences."""
        model.eval()
        correct = cases = 0
        with torch.no_grad():
            for split in (self.data.validation, self.data.test):
                cases += split.cases
                for batch in self.batcher.in_order(split, 256):
                    correct += int((model(batch.x).argmax(-1) == batch.y).sum())
        model.train()
        return 100 * correct / cases


def layer_of(model: SequenceModel) -> DSS:
    """The one state space layer."""
    (layer,) = (module for module in model.modules() if isinstance(module, DSS))
    return layer


def largest_weight(model: SequenceModel) -> float:
    """The largest |C| of the layer."""
    layer = layer_of(model)
    return float(torch.hypot(layer.C_re.detach(), layer.C_im.detach()).max())


def cut_run(
    digits: Digits, shared: tuple[SequenceModel, torch.optim.Optimizer], disturbance: float
) -> dict[str, float]:
    """The rest of a run with cuts, from its step 200."""
    model, optimizer = copy.deepcopy(shared)
    reducer, found = BalancedSelection(disturbance=disturbance), {"before": digits.accuracy(model)}
    digits.cut(model, optimizer, 200, reducer)
    found["right after"] = digits.accuracy(model)
    losses = digits.train(model, optimizer, 200, 300)
    found["loss of 20 steps"] = sum(losses[:20]) / 20
    digits.cut(model, optimizer, 300, reducer)
    found["largest weight"] = largest_weight(model)
    digits.train(model, optimizer, 300, STEPS)
    return {**found, "end": digits.accuracy(model)}


def plain_run(digits: Digits, order: int) -> dict[str, float]:
    """A run without cuts."""
    model, optimizer = digits.start(order)
    digits.train(model, optimizer, 0, STEPS)
    return {"end": digits.accuracy(model), "largest weight": largest_weight(model)}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--disturbances", type=float, nargs="+", default=[0.0, 0.01, 0.03, 0.1])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        digits = Digits(seed)
        shared = digits.start(32)
        digits.train(*shared, 0, 200)
        runs = {f"cut, disturbance {d:g}": cut_run(digits, shared, d) for d in args.disturbances}
        runs |= {"8 states from the start": plain_run(digits, 8), "32 states, no cut": plain_run(digits, 32)}
        for name, run in runs.items():
            found.setdefault(name, []).append(run)
            print(seed, name, {key: round(value, 2) for key, value in run.items()}, flush=True)
    columns = {"right after": 1, "loss of 20 steps": 2, "largest weight": 0, "end": 1}
    rows = [
        [name, *(mean_and_spread([r[c] for r in runs], d) if c in runs[0] else "" for c, d in columns.items())]
        for name, runs in found.items()
    ]
    table = markdown(["run", "right after the first cut", "loss of the 20 steps then", "largest weight", "end"], rows)
    write_record(args.out, "python experiments/disturbance.py", found, table)


if __name__ == "__main__":
    main()
