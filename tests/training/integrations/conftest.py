"""A small task, and what a resumed run is compared by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedOrder
from compressm.training import At


class Kit:
    """What the tests of all integrations use."""

    def __init__(self) -> None:
        self.cuts: dict[str, Any] = {"schedule": At((3, 7)), "criteria": (FixedOrder(8), FixedOrder(5))}

    @staticmethod
    def model(**changes: Any) -> SequenceModel:
        torch.manual_seed(1)
        config = {"inputs": 2, "outputs": 3, "width": 4, "order": 12, "blocks": 2, "dropout": 0.2} | changes
        return SequenceModel(ModelConfig(**config))

    @classmethod
    def awkward(cls, **changes: Any) -> SequenceModel:
        """A model with frozen parameters, and with two layers that share all of theirs."""
        model = cls.model(**changes)
        model.encoder.weight.requires_grad_(False)
        for name, parameter in model.blocks[0].ssm.named_parameters():
            setattr(model.blocks[1].ssm, name, parameter)
        return model

    @staticmethod
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters of the state space layers, and the others, as parameter groups."""
        ssm = {p: None for m in model.modules() if isinstance(m, LRU) for p in m.parameters()}
        rest = [p for p in model.parameters() if p not in ssm and p.requires_grad]
        return [{"params": list(ssm), "lr": 1e-3}, {"params": rest}]

    @staticmethod
    def data(count: int = 24) -> TensorDataset:
        g = torch.Generator().manual_seed(1)
        x = torch.randn(count, 16, 2, generator=g).cumsum(1) / 3
        return TensorDataset(x, (x[:, -1, 0] > 0).long() + (x[:, -1, 1] > 1).long())

    @staticmethod
    def orders(model: nn.Module) -> list[int]:
        return [m.nu_log.shape[0] for m in model.modules() if isinstance(m, LRU)]

    @classmethod
    def unequal(cls, a: Any, b: Any, path: str = "") -> list[str]:
        """The paths at which two nested states are not the same bit for bit; wall times aside."""
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return [] if a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) else [path]
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
            return [x for k in a if k != "seconds" for x in cls.unequal(a[k], b[k], f"{path}/{k}")]
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                return [f"{path}: {len(a)} and {len(b)}"]
            return [x for i, (u, v) in enumerate(zip(a, b, strict=True)) for x in cls.unequal(u, v, f"{path}/{i}")]
        return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} and {b!r}"]


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
