"""A small training run with everything that a checkpoint must bring back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate, Select
from compressm.checkpoint import load_checkpoint, save_checkpoint
from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.surgery.operation import operate
from compressm.surgery.policy import StatePolicy


class Counter:
    """Stands for a compressor: nested state with tensors, tuples and what JSON lacks."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"steps": 0, "spectra": {}, "best": float("inf")}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "spectra" not in state:
            raise KeyError("spectra")
        self.state = state


def cut(model: nn.Module, optimizer: torch.optim.Optimizer | None, order: int) -> None:
    """Keep the last `order` states of every LRU."""
    items = []
    for name, layer in model.named_modules():
        if isinstance(layer, LRU):
            keep = torch.arange(layer.order - order, layer.order)
            rows, columns = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im"), ("C_re", "C_im")
            tensors = {n: getattr(layer, n).detach()[keep] for n in rows}
            tensors |= {n: getattr(layer, n).detach()[:, keep] for n in columns}
            items.append(
                (name, layer, LayerUpdate(order, tensors, {}, (Select(rows, keep, 0), Select(columns, keep, 1))))
            )
    operate(items, optimizer, StatePolicy.TRANSPORT)


class Run:
    """Adam with dropout, batch norm, noise of three generators, a schedule and something like a compressor."""

    def __init__(self, seed: int = 0, make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, **kw: Any) -> None:
        torch.manual_seed(seed)
        config = {"inputs": 2, "outputs": 3, "width": 4, "order": 8, "blocks": 2, "dropout": 0.2} | kw
        self.model = SequenceModel(ModelConfig(**config))
        fast, slow = [], []
        for name, p in self.model.named_parameters():
            (slow if "_log" in name else fast).append(p)
        self.optimizer = make([{"params": fast}, {"params": slow, "lr": 1e-3}], lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=[1e-2, 1e-3], total_steps=50, cycle_momentum=False
        )
        self.compressor = Counter()

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(3, 10, 2) + random.random() + float(np.random.randn())
            self.optimizer.zero_grad()
            loss = self.model(x).square().mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.compressor.state["steps"] += 1
            losses.append(loss.item())
        return losses

    def save(self, path: Path, **kw: Any) -> None:
        save_checkpoint(
            path, self.model, optimizer=self.optimizer, scheduler=self.scheduler, compressor=self.compressor, **kw
        )

    def load(self, path: Path, **kw: Any) -> dict[str, Any]:
        return load_checkpoint(
            path, self.model, optimizer=self.optimizer, scheduler=self.scheduler, compressor=self.compressor, **kw
        )

    def fingerprint(self) -> dict[str, Any]:
        """All values, and which memory the model's tensors lie in."""
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        places = [(id(p), p.data_ptr()) for p in self.model.parameters()]
        grads = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        optimizer = self.optimizer.state_dict()
        moments = [
            (index, key, value.clone() if isinstance(value, Tensor) else value)
            for index, entry in optimizer["state"].items()
            for key, value in entry.items()
        ]
        others = repr((optimizer["param_groups"], self.scheduler.state_dict(), self.compressor.state))
        rng = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
        return {"state": state, "places": places, "grads": grads, "moments": moments, "others": others, "rng": rng}


def same(a: Any, b: Any) -> bool:
    """Equality of nested values, bit for bit in tensors."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def make_run() -> type[Run]:
    return Run


@pytest.fixture
def cut_run() -> Run:
    """A run after three steps, a cut to order 3, and two more steps."""
    random.seed(1)
    np.random.seed(2)
    run = Run()
    run.train(3)
    cut(run.model, run.optimizer, 3)
    run.compressor.state["spectra"] = {"layer": torch.rand(4, dtype=torch.float64)}
    run.train(2)
    return run


@pytest.fixture
def equal() -> Callable[[Any, Any], bool]:
    return same


@pytest.fixture
def cut_to() -> Callable[..., None]:
    return cut
