"""A small training run whose batch is a function of the compressor's count of steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressm.layers import ModelConfig, SequenceModel
from compressm.training.compressor import InTrainingCompressor


class Run:
    """Model, optimizer, scheduler and compressor of one run."""

    def __init__(self, compress: bool = True, model: nn.Module | None = None, **arguments: Any) -> None:
        torch.manual_seed(1)
        random.seed(0)
        np.random.seed(0)
        config = ModelConfig(inputs=2, outputs=3, width=4, order=12, blocks=2, dropout=0.2)
        self.model = SequenceModel(config) if model is None else model
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)
        self.steps = 0
        self.losses: list[float] = []
        self.compressor = (
            InTrainingCompressor(self.model, self.optimizer, scheduler=self.scheduler, **arguments)
            if compress
            else None
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(6, 20, 2, generator=g).cumsum(1) / 3
        return x, (x[:, -1, 0] > 0).long() + (x[:, -1, 1] > 1).long()

    def backward(self) -> Tensor:
        x, y = self.batch(self.steps if self.compressor is None else self.compressor.steps)
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def train(self, steps: int) -> list[Any]:
        events: list[Any] = []
        for _ in range(steps):
            self.losses.append(self.backward().item())
            self.optimizer.step()
            self.scheduler.step()
            self.steps += 1
            if self.compressor is not None:
                events += self.compressor.step()
        return events

    def orders(self) -> list[int]:
        return [m.nu_log.shape[0] for m in self.model.modules() if hasattr(m, "nu_log")]

    def save(self) -> dict[str, Any]:
        """Everything of the run, copied."""
        return clone(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "compressor": None if self.compressor is None else self.compressor.state_dict(),
                "rng": torch.get_rng_state(),
            }
        )

    def load(self, saved: dict[str, Any]) -> None:
        saved = clone(saved)
        here = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in saved["model"].items():
                here[name].set_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.compressor is not None:
            self.compressor.load_state_dict(saved["compressor"])
        torch.set_rng_state(saved["rng"])


def clone(value: Any) -> Any:
    """A copy of nested containers and tensors that fails on anything but plain values."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clone(v) for v in value)
    assert value is None or isinstance(value, (bool, int, float, str)), f"{type(value)} is not plain"
    return value


def differing(a: Any, b: Any, path: str = "", ignore: tuple[str, ...] = ("seconds",)) -> list[str]:
    """The paths at which two saved runs are not the same bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30))
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [line for k in a if k not in ignore for line in differing(a[k], b[k], f"{path}/{k}", ignore)]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)} and {len(b)}"]
        return [x for i, (u, v) in enumerate(zip(a, b, strict=True)) for x in differing(u, v, f"{path}/{i}", ignore)]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} and {b!r}"]


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return Run


@pytest.fixture
def compare() -> Callable[..., list[str]]:
    return differing
