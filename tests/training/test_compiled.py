"""Compiled models through cuts: captured, correct, and compiled again once for each size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from compressm.adapters.calibration import Calibration
from compressm.layers import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, CompilePolicy, Guard, InTrainingCompressor

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
    import torch._dynamo.config as config

    before = config.force_parameter_static_shapes, config.force_nn_module_property_static_shapes
    torch.compiler.reset()
    yield
    config.force_parameter_static_shapes, config.force_nn_module_property_static_shapes = before
    torch.compiler.reset()


def train(how: str, graphs: Graphs, **options: Any) -> tuple[Small, InTrainingCompressor, list[int]]:
    """Eight steps with cuts after the third and the sixth; the graphs that each step compiled."""
    torch.manual_seed(0)
    model, counts = Small(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run: nn.Module = model
    if how == "whole":
        run = torch.compile(model, backend=graphs)
    elif how == "layer":
        model.ssm.compile(backend=graphs)
    values = {
        "schedule": At((3, 6)),
        "criteria": [FixedOrder(6), FixedOrder(5)],
        "calibration_steps": 1,
        "settings": "data",
    }
    values |= options
    compressor = InTrainingCompressor(run, optimizer, **values)
    for step in range(8):
        before = graphs.compiled
        x = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(x), (x[:, -1, 0] > 0).long()).backward()
        optimizer.step()
        compressor.step()
        counts.append(graphs.compiled - before)
    return model, compressor, counts


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return train("plain", Graphs())[0].state_dict()


@pytest.mark.parametrize("how", ["whole", "layer"])
def test_a_compiled_model_trains_through_cuts_as_a_plain_one(how: str, plain: dict[str, Tensor]) -> None:
    model, compressor, counts = train(how, Graphs(trace_backward=how == "layer"))
    state = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    assert state.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    reports = [layer for cut in compressor.history.cuts for layer in cut.report.layers]
    assert [(r.order_before, r.order_after, r.controllability) for r in reports] == [(8, 6, "data"), (6, 5, "data")]
    first = counts[0]
    assert first > 0
    assert counts == [first, 0, 0, first, 0, 0, first, 0]  # the step before a cut is captured: not compiled


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


def test_graphs_for_any_size_are_compiled_less_often() -> None:
    _, _, counts = train("whole", Graphs(), compile_policy=CompilePolicy.DYNAMIC)
    assert counts[0] > 0
    assert counts[6] < counts[0]
    assert [counts[k] for k in (1, 2, 4, 5, 7)] == [0] * 5


def test_a_cut_taken_back_leaves_no_stale_graph() -> None:
    metrics = iter([1.0, 0.0])
    guard = Guard(lambda: next(metrics), allowed=0.1, higher_is_better=True, probe_after=2)
    graphs = Graphs()
    model, compressor, counts = train("layer", graphs, schedule=At((3,)), criteria=[FixedOrder(6)], guard=guard)
    assert [event.kind for event in compressor.history] == ["rolled_back"]
    assert model.ssm.order == 8
    assert counts[5] == counts[0]  # compiled anew, and not captured: no further cut is due


def test_the_compiler_is_as_it_was_outside_of_captures() -> None:
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters())
    compressor = InTrainingCompressor(model, optimizer, schedule=At((1,)))
    eager = sys.modules["torch._dynamo.eval_frame"]
    assert eager._stance.stance == "force_eager"
    with compressor.not_capturing():
        assert eager._stance.stance == "default"
    compressor.step()
    assert eager._stance.stance == "default"
