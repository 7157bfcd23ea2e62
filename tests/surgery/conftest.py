"""A small layer with every kind of thing that an update may name, updates of it, and optimizers of all kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.update import LayerUpdate, Reset, Select


class Inner(nn.Module):
    def __init__(self, order: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(order, 3))


class Toy(nn.Module):
    """y = C tanh(pole * (B u) + weight u), with a buffer, a plain tensor and an integer size beside."""

    def __init__(self, order: int = 8) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.randn(order))
        self.B = nn.Parameter(torch.randn(order, 3))
        self.C = nn.Parameter(torch.randn(2, order))
        self.D = nn.Parameter(torch.randn(2))
        self.inner = Inner(order)
        self.register_buffer("scale", torch.rand(order))
        self.plain = torch.arange(float(order))
        self.size = order

    def forward(self, u: Tensor) -> Tensor:
        assert self.pole.shape == (self.size,)
        state = torch.tanh(self.pole * (u @ self.B.mT) + u @ self.inner.weight.mT) * self.scale + self.plain
        return state @ self.C.mT + self.D


def select(layer: nn.Module, keep: list[int]) -> LayerUpdate:
    """Keep some states of a Toy; exact for values and moments."""
    index = torch.tensor(keep)
    dims = {"pole": 0, "B": 0, "C": 1, "inner.weight": 0}
    values = {**dict(layer.named_parameters()), **dict(layer.named_buffers()), "plain": layer.plain}
    tensors = {name: values[name].detach().index_select(dim, index) for name, dim in dims.items()}
    tensors |= {name: values[name].index_select(0, index) for name in ("scale", "plain")}
    maps = (Select(("pole", "B", "inner.weight"), index, 0), Select(("C",), index, 1))
    return LayerUpdate(len(keep), tensors, {"size": len(keep)}, maps)


class Lion(Optimizer):
    """Sign of an interpolated gradient (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                p.add_((0.9 * state["exp_avg"] + 0.1 * p.grad).sign(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 0.01)


class Foreign(Lion):
    """Keeps a tensor of a kind that nobody knows."""

    key = "mystery"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        super().step()
        for p in self.state:
            self.state[p].setdefault(self.key, torch.zeros_like(p))


Make = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "adamw capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), foreach=False),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, fused=True),
    "lion": lambda p: Lion(p, lr=0.05),
}
LAZY: dict[str, Make] = {
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "foreign": lambda p: Foreign(p),
}


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def snapshot(optimizer: Optimizer, parameter: Tensor) -> dict[str, object]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[parameter].items()}


def assert_same(entry: dict[str, object], other: dict[str, object]) -> None:
    assert entry.keys() == other.keys()
    for key, value in entry.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def make_toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture
def make_select() -> Callable[[nn.Module, list[int]], LayerUpdate]:
    return select


@pytest.fixture
def make_reset() -> Callable[[nn.Module, list[int]], LayerUpdate]:
    def reset(layer: nn.Module, keep: list[int]) -> LayerUpdate:
        update = select(layer, keep)
        return LayerUpdate(len(keep), update.tensors, update.attributes, (Reset(("pole", "B", "inner.weight", "C")),))

    return reset


@pytest.fixture
def optimizers() -> dict[str, Make]:
    return OPTIMIZERS | LAZY


@pytest.fixture(params=OPTIMIZERS, name="make")
def fixture_make(request: pytest.FixtureRequest) -> Make:
    return OPTIMIZERS[request.param]


@pytest.fixture(name="train")
def fixture_train() -> Callable[..., None]:
    return train


@pytest.fixture
def state_of() -> Callable[[Optimizer, Tensor], dict[str, object]]:
    return snapshot


@pytest.fixture(name="assert_same")
def fixture_assert_same() -> Callable[[dict[str, object], dict[str, object]], None]:
    return assert_same
