"""Frozen, tied and repeated layers, several optimizers, other kinds of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedFraction, FixedOrder
from compressm.training import At, InTrainingCompressor

RunFactory = Callable[..., Any]
FIXED = (FixedOrder(8), FixedOrder(5))


def test_several_optimizers(make_run: RunFactory) -> None:
    run = make_run(compress=False)
    ssm = [p for m in run.model.modules() if isinstance(m, LRU) for p in m.parameters()]
    rest = [p for p in run.model.parameters() if all(p is not q for q in ssm)]
    optimizers = [torch.optim.Adam(ssm, lr=1e-3), torch.optim.SGD(rest, lr=1e-2, momentum=0.9)]
    compressor = InTrainingCompressor(run.model, optimizers, schedule=At((2,)), criteria=FIXED)
    for _ in range(4):
        run.backward()
        for optimizer in optimizers:
            optimizer.step()
        compressor.step()
    assert run.orders() == [8, 8]
    assert all(optimizers[0].state[p]["exp_avg"].shape == p.shape for p in ssm)


def test_frozen_parameters_stay_frozen_and_are_cut(make_run: RunFactory) -> None:
    model = make_run(compress=False).model
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    run = make_run(model=model, schedule=At((3,)), criteria=FIXED)
    run.train(5)
    assert run.orders() == [8, 8]
    assert not any(p.requires_grad for p in model.blocks[0].parameters())
    assert all(p.requires_grad for p in model.blocks[1].parameters())


def test_a_layer_used_twice_is_one_layer(make_run: RunFactory) -> None:
    model = make_run(compress=False).model
    model.blocks[1] = model.blocks[0]
    run = make_run(model=model, schedule=At((3,)), criteria=FIXED)
    assert len(run.compressor.orders()) == 1
    run.train(5)
    assert set(run.orders()) == {8}


def test_layers_that_share_all_parameters_stay_tied(make_run: RunFactory) -> None:
    model = make_run(compress=False).model
    first, second = (m for m in model.modules() if isinstance(m, LRU))
    for name, parameter in first.named_parameters():
        setattr(second, name, parameter)
    run = make_run(model=model, schedule=At((3,)), criteria=FIXED)
    run.train(5)
    assert first.C_re is second.C_re
    assert run.orders() == [8, 8]
    assert list(run.compressor.orders().values()) == [8]


@pytest.mark.parametrize("changes", [{"layer": "dense", "order": 6}, {"bidirectional": True}, {"task": "sequence"}])
def test_other_models(make_run: RunFactory, changes: dict[str, Any]) -> None:
    config = ModelConfig(**({"inputs": 2, "outputs": 3, "width": 4, "order": 12, "blocks": 1} | changes))
    model = SequenceModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    compressor = InTrainingCompressor(model, optimizer, schedule=At((2, 4)), criteria=[FixedFraction(0.5)])
    for step in range(6):
        x = torch.randn(3, 10, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        compressor.step()
    assert set(compressor.orders().values()) == {config.order - config.order // 2 - (config.order // 2) // 2}
    assert all(torch.isfinite(p).all() for p in model.parameters())
