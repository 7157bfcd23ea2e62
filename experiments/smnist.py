"""What the experiments share: sequential MNIST, the paper's model on it, training steps, accuracy, records."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compressm import __version__
from compressm.data.batching import Batcher
from compressm.data.registry import load_dataset
from compressm.layers.config import ModelConfig
from compressm.layers.model import SequenceModel

BATCH_SIZE = 50


class Smnist:
    """Training batches and the test set of sequential MNIST (784 pixels, standardised)."""

    def __init__(self, seed: int) -> None:
        self.data = load_dataset("smnist")
        self.batcher = Batcher(self.data, BATCH_SIZE, seed)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The training batch of one step; a function of seed and step."""
        batch = self.batcher.training(step)
        return batch.x, batch.y

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy in per cent on the 10,000 test sequences."""
        was_training = model.training
        model.eval()
        correct = 0
        with torch.no_grad():
            for batch in self.batcher.in_order(self.data.test, 250):
                correct += int((model(batch.x).argmax(-1) == batch.y).sum())
        model.train(was_training)
        return 100 * correct / self.data.test.cases


def paper_model(seed: int) -> SequenceModel:
    """1 block, H = 8, N = 256, dropout 0.1 (Chahine et al. 2026, hyper-parameters for sMNIST)."""
    torch.manual_seed(seed)
    return SequenceModel(ModelConfig(inputs=1, outputs=10, width=8, order=256, blocks=1, dropout=0.1))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step; the loss before it."""
    loss = cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "compressm": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.system()}",
    }


def write_record(out: Path | None, command: str, results: object, table: str) -> None:
    """Print the table, and write it beside the results as JSON and Markdown where `out` (without suffix) is given."""
    print(table)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "machine": machine(), "results": results}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    out.with_suffix(".md").write_text(f"{table}\n\n`{command}` ({where})\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean +- standard deviation."""
    t = torch.tensor(values, dtype=torch.float64)
    spread = float(t.std()) if len(values) > 1 else 0.0
    return f"{float(t.mean()):.{digits}f} +- {spread:.{digits}f}"


def by_name(values: Mapping[str, float]) -> str:
    """Short text for a mapping."""
    return ", ".join(f"{k} {v:.1f}" for k, v in values.items())
