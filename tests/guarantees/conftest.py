"""A small training run with a fingerprint of everything that must not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compressm.checkpoint.tree import encode
from compressm.layers import ModelConfig, SequenceModel


class Training:
    """A small model with an optimizer that has moments."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = SequenceModel(ModelConfig(inputs=2, outputs=2, width=3, order=8, **options))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(3, 6, 2)).square().mean().backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def fingerprint(self) -> Any:
        """Values (NaN included), shapes, places in memory, gradients, optimizer state and modes."""
        model = [
            (n, id(t), t.data_ptr(), tuple(t.shape), t.detach().numpy().tobytes(), t.requires_grad)
            for n, t in (*self.model.named_parameters(), *self.model.named_buffers())
        ]
        grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in self.model.parameters()]
        held: dict[str, Tensor] = {}
        tree = encode(copy.copy(self.optimizer.state_dict()), "optimizer", held)
        modes = [m.training for m in self.model.modules()]
        return model, grads, repr(tree), [(n, t.numpy().tobytes()) for n, t in held.items()], modes


@pytest.fixture(scope="session")
def new_run() -> Callable[..., Training]:
    """Makes a run; options are those of `ModelConfig`."""
    return Training
