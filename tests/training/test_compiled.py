"""Compiled models through cuts: captured, correct, and compiled again once for each size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from compressm import CompressionSettings, analyze, compress_, load_checkpoint, save_checkpoint
from compressm.adapters.calibration import Calibration
from compressm.checkpoint.state_dicts import accept_cut_weights
from compressm.layers import LRU, LayerKind, ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Guard, InTrainingCompressor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.ssm, self.head = nn.Linear(2, 4), LRU(width=4, order=8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ssm(self.encoder(x)).mean(1))


class Graphs:
    """A backend that runs graphs as they are, or through AOTAutograd, and counts them."""

    def __init__(self, trace_backward: bool = False) -> None:
        self.compiled, self.trace_backward = 0, trace_backward

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.compiled += 1
        return aot_eager(graph, inputs) if self.trace_backward else graph.forward


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@torch.no_grad()
def assert_no_graph_is_stale(run: nn.Module, x: Tensor) -> None:
    """After a cut and a compiled step: what is compiled says what the plain model says."""
    found = run(x)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(found, run(x), rtol=1e-5, atol=1e-6)


def train(how: str, graphs: Graphs, **options: Any) -> tuple[Small, InTrainingCompressor, list[int]]:
    """Seven steps with cuts after the second and the fifth; the graphs that each step compiled."""
    torch.manual_seed(0)
    model, counts = Small(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run: nn.Module = model
    if how == "whole":
        run = torch.compile(model, backend=graphs)
    elif how == "in place":
        model.compile(backend=graphs)
    elif how == "one layer":
        model.ssm.compile(backend=graphs)
    values = {
        "schedule": At((2, 5)),
        "criteria": [FixedOrder(6), FixedOrder(5)],
        "calibration_steps": 1,
        "settings": "data",
    }
    values |= options
    compressor = InTrainingCompressor(run, optimizer, **values)
    for step in range(7):
        x = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(step))
        before = graphs.compiled
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(x), (x[:, -1, 0] > 0).long()).backward()
        optimizer.step()
        compressor.step()
        counts.append(graphs.compiled - before)
        if step in (2, 5):
            assert_no_graph_is_stale(run, x)
    return model, compressor, counts


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return train("plain", Graphs())[0].state_dict()


@pytest.mark.parametrize("how", ["whole", "in place"])
def test_a_compiled_model_trains_through_cuts_as_a_plain_one(how: str, plain: dict[str, Tensor]) -> None:
    model, compressor, counts = train(how, Graphs(trace_backward=how == "in place"))
    state = model.state_dict()
    assert state.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    reports = [layer for cut in compressor.history.cuts for layer in cut.report.layers]
    assert [(r.order_before, r.order_after, r.controllability) for r in reports] == [(8, 6, "data"), (6, 5, "data")]
    first = counts[0]
    assert first > 0
    assert counts == [first, 0, first, 0, 0, first, 0]  # the step before a cut is captured, and runs as it is


def test_what_passes_inside_a_compiled_model_is_captured() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(3, 8, 2)
    compiled = torch.compile(model, backend="eager")
    compiled(x).sum().backward()  # its graph knows of no hooks
    captures = []
    for run in (model, compiled):
        with Calibration(model) as calibration:
            run(x).square().sum().backward()
        captures.append(calibration.capture("ssm"))
    for kind in ("inputs", "gradients"):
        (one, _), (other, _) = (getattr(capture, kind)[0] for capture in captures)
        assert torch.equal(one, other), kind


def test_a_cut_taken_back_leaves_no_stale_graph() -> None:
    metrics = iter([1.0, 0.0])
    guard = Guard(lambda: next(metrics), allowed=0.1, higher_is_better=True, probe_after=2)
    graphs = Graphs()
    model, compressor, counts = train("one layer", graphs, schedule=At((2,)), criteria=[FixedOrder(6)], guard=guard)
    assert [event.kind for event in compressor.history] == ["rolled_back"]
    assert model.ssm.order == 8
    assert counts[4] == counts[0]  # compiled anew, and not captured: no further cut is due


def test_a_compiled_model_is_its_plain_model_to_every_function(tmp_path: Path) -> None:
    plain = Small()
    compiled, inside = torch.compile(plain, backend="eager"), nn.Sequential(torch.compile(plain.ssm, backend="eager"))
    assert [layer.name for layer in analyze(compiled).layers] == ["ssm"]
    with Calibration(compiled) as calibration:
        compiled(torch.randn(3, 8, 2)).sum().backward()
    cut = compress_(compiled, CompressionSettings(FixedOrder(6)), calibration=calibration)
    assert (cut.orders(), cut.layers[0].controllability) == ({"ssm": 6}, "data")
    save_checkpoint(tmp_path, compiled)
    handle = accept_cut_weights(torch.compile(other := Small(), backend="eager"))
    other.load_state_dict(plain.state_dict())
    handle.remove()
    assert other.ssm.order == 6
    load_checkpoint(tmp_path, third := Small())
    assert torch.equal(third.ssm.B_re, plain.ssm.B_re)
    assert compress_(inside, CompressionSettings(FixedOrder(4))).changed
    assert plain.ssm.order == 4


def one_block(kind: LayerKind, order: int) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(ModelConfig(inputs=2, outputs=3, width=4, order=order, blocks=1, dropout=0.2, layer=kind))


@pytest.mark.parametrize("kind", LayerKind, ids=str)
def test_a_model_in_training_is_one_graph(kind: LayerKind) -> None:
    found = torch._dynamo.explain(one_block(kind, 9))(torch.randn(3, 20, 2))
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "order", "length"),
    [
        (LayerKind.S4D, 3, 40),  # in blocks of time
        (LayerKind.S4D, 9, 40),  # as a convolution
        (LayerKind.S4, 3, 40),  # by squarings
        (LayerKind.S4, 24, 24),  # by power series
        (LayerKind.LSSL, 3, 40),
        (LayerKind.DENSE, 3, 40),
    ],
)
def test_a_compiled_model_has_the_gradients_of_the_plain_one(kind: LayerKind, order: int, length: int) -> None:
    model, x = one_block(kind, order).eval(), torch.randn(16, length, 2)
    found = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        y = run(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
