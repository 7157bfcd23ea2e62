"""Averages of the weights through the cuts of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compressm import CompressionSettings, compress_
from compressm.errors import SurgeryError
from compressm.layers import ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.selection import ModalTruncation
from compressm.training import At, Guard, InTrainingCompressor

RunFactory = Callable[..., Any]


def trained(steps: int = 60, **changes: Any) -> tuple[SequenceModel, AveragedModel, torch.Tensor]:
    torch.manual_seed(0)
    config = {"inputs": 2, "outputs": 3, "width": 6, "order": 12, "blocks": 2, "dropout": 0.0, "norm": "layer"}
    model = SequenceModel(ModelConfig(**(config | changes)))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        x = torch.randn(8, 20, 2, generator=torch.Generator().manual_seed(step)).cumsum(1) / 3
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x[:, -1, 0] > 0).long()).backward()
        optimizer.step()
        average.update_parameters(model)
    return model.eval(), average.eval(), torch.randn(32, 20, 2).cumsum(1) / 3


def change(new: torch.Tensor, old: torch.Tensor) -> float:
    return float((new - old).norm() / old.norm())


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"layer": "dense", "order": 8}])
def test_an_average_still_predicts_as_before_the_cut(changes: dict[str, Any]) -> None:
    with torch.enable_grad():
        model, average, x = trained(**changes)
    live, before = model(x), average(x)
    distance = change(before, live)
    compress_(model, CompressionSettings(criterion=FixedOrder(6)), mirrors=[average])
    assert [b.ssm.order for b in average.module.blocks] == [6, 6]
    assert distance > 0.05  # the weights of the model itself would not do
    assert change(average(x), before) < 2 * change(model(x), live) + 0.1 * distance


@torch.no_grad()
def test_a_copy_that_equals_the_model_stays_equal() -> None:
    with torch.enable_grad():
        model, average, x = trained(5)
    average.module.load_state_dict(model.state_dict())
    compress_(model, CompressionSettings(criterion=FixedOrder(7)), mirrors=[average])
    torch.testing.assert_close(average(x), model(x), rtol=1e-4, atol=1e-5)
    for one, other in zip(model.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_choice_of_states_keeps_the_same_states_of_the_average() -> None:
    with torch.enable_grad():
        model, average, _ = trained(20)
    before = [b.ssm.nu_log.clone() for b in average.module.blocks], [b.ssm.nu_log.clone() for b in model.blocks]
    compress_(model, CompressionSettings(criterion=FixedOrder(6), reducer=ModalTruncation()), mirrors=[average])
    for was, live, now, here in zip(*before, average.module.blocks, model.blocks, strict=True):
        kept = [int((live == value).nonzero()[0]) for value in here.ssm.nu_log]
        assert torch.equal(now.ssm.nu_log, was[kept])


def test_averaging_goes_on_through_cuts_and_roll_backs(make_run: RunFactory) -> None:
    model = make_run(compress=False).model
    average = AveragedModel(model)
    metrics = iter([1.0, 1.0, 1.0, 0.0])
    guard = Guard(lambda: next(metrics), allowed=0.1, higher_is_better=True, probe_after=2)
    run = make_run(
        model=model, schedule=At((3, 7)), criteria=(FixedOrder(8), FixedOrder(5)), guard=guard, mirrors=[average]
    )
    seen = []
    for _ in range(12):
        average.update_parameters(model)
        run.train(1)
        seen.append(average.module.blocks[0].ssm.order)
    assert [event.kind for event in run.compressor.history] == ["cut", "rolled_back"]
    assert seen == [12, 12, 8, 8, 8, 8, 5, 5, 8, 8, 8, 8]
    assert int(average.n_averaged) == 10  # taken back with the cut


def test_a_state_with_a_pending_probe_holds_the_average(make_run: RunFactory) -> None:
    def build() -> tuple[Any, AveragedModel]:
        model = make_run(compress=False).model
        average = AveragedModel(model)
        guard = Guard(lambda: next(metrics), allowed=0.1, higher_is_better=True, probe_after=4)
        return make_run(
            model=model, schedule=At((2,)), criteria=[FixedOrder(5)], guard=guard, mirrors=[average]
        ), average

    metrics = iter([1.0, 0.0])
    run, average = build()
    first = average.module.state_dict()["blocks.0.ssm.B_re"].clone()
    run.train(3)
    saved = run.save()
    again, other = build()
    again.load(saved)
    again.train(3)
    assert again.compressor.history[0].kind == "rolled_back"
    assert torch.equal(other.module.blocks[0].ssm.B_re, first)


def test_what_is_no_copy_is_refused(make_run: RunFactory) -> None:
    run = make_run(compress=False)
    small = SequenceModel(ModelConfig(inputs=2, outputs=3, width=4, order=7, blocks=2))
    for mirror, said in ((nn.Linear(2, 2), "no copy of the model"), (AveragedModel(small), "differs from the model's")):
        with pytest.raises(SurgeryError, match=said):
            InTrainingCompressor(run.model, run.optimizer, schedule=At((2,)), mirrors=[mirror])
