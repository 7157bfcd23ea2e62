"""Optimizer state beside a complex parameter follows a cut exactly as beside its real view."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate, Pullback, Select
from compressm.adapters.weights import ComplexWeights, PlainWeights, ViewedWeights
from compressm.surgery.operation import operate
from compressm.surgery.policy import StatePolicy

KINDS = ("sgd momentum", "adam", "amsgrad", "adamax", "nadam", "rmsprop momentum", "rmsprop centered", "adagrad")
INDEX = torch.tensor([4, 0, 3])
MIX = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Holder(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(value.clone())


def train(layer: Holder, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        target = torch.randn(*layer.w.shape[:2], 2, generator=generator)
        w = torch.view_as_real(layer.w) if layer.w.is_complex() else layer.w
        optimizer.zero_grad()
        (target * w + (target * w) ** 2).sum().backward()
        optimizer.step()


def update(kind: str, weights: ComplexWeights, layer: Holder) -> LayerUpdate:
    """A choice of states, or a change of coordinates of the states."""
    tensors = {"w": layer.w.detach()[INDEX].clone()}
    if kind == "select":
        return LayerUpdate(3, tensors, maps=(Select(("w",), INDEX, 0),))

    def covectors(old: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights.tensors(torch.view_as_complex(MIX) @ weights.value(old))

    def variances(old: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"w": old["w"].mean(0, keepdim=True).expand(3, -1, -1).clone()}

    return LayerUpdate(3, tensors, maps=(Pullback(("w",), covectors, variances),))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["select", "pullback"])
@pytest.mark.parametrize("policy", list(StatePolicy))
def test_it_follows_as_a_real_view_does(name: str, kind: str, policy: StatePolicy, optimizers) -> None:
    value = torch.randn(6, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    pair: list[tuple[Holder, torch.optim.Optimizer, ComplexWeights]] = [
        (layer := Holder(value), optimizers[name]([layer.w]), PlainWeights("w")),
        (layer := Holder(torch.view_as_real(value)), optimizers[name]([layer.w]), ViewedWeights("w")),
    ]
    for layer, optimizer, weights in pair:
        train(layer, optimizer, 3, seed=2)
        operation = operate([("layer", layer, update(kind, weights, layer))], optimizer, policy)
        assert operation.warnings == ()
        train(layer, optimizer, 2, seed=3)
    (whole, first, _), (viewed, second, _) = pair
    torch.testing.assert_close(torch.view_as_real(whole.w.detach()), viewed.w.detach())
    for key, value in first.state[whole.w].items():
        if isinstance(value, Tensor) and value.ndim:
            torch.testing.assert_close(torch.view_as_real(value), second.state[viewed.w][key], msg=key)
