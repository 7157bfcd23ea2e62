"""The chunked form inside `torch.compile`: one operator, with the values and gradients of the form outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from compressm.layers import LRU, ModelConfig, SequenceModel
from compressm.ops import Form, diagonal_lti, use_kernels
from compressm.ops.chunked import diagonal_chunked
from compressm.ops.kernels import kernels_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = use_kernels(request.param)
    if request.param and not kernels_run():
        pytest.skip("numba is not installed")
    yield request.param
    use_kernels(before)


def system(order: int, inputs: int, outputs: int, dtype: torch.dtype, d: bool) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(order)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    poles = [(0.05 * leaf(order).abs() + 1e-3), leaf(order)]  # float64, as layers give them
    matrices = [leaf(order, inputs), leaf(order, inputs), leaf(outputs, order), leaf(outputs, order)]
    rest = [t.to(dtype) for t in (*matrices, *([leaf(outputs)] if d else []))]
    tensors = [t.requires_grad_() for t in (*poles, *rest)]
    return [*tensors] if d else [*tensors, None]


def derived(run: Any, tensors: list[Tensor | None], u: Tensor) -> list[Tensor]:
    given = [t for t in tensors if t is not None]
    *parts, d = tensors
    y = run(*parts, u, Form.CHUNKED, feedthrough=d)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [*given, u])]


@pytest.mark.parametrize(
    ("order", "inputs", "outputs", "d", "dtype"),
    [
        (5, 6, 6, True, torch.float32),  # states are stored
        (9, 3, 4, False, torch.float32),  # and computed anew
        (300, 4, 4, True, torch.float64),
        (7, 7, 7, True, torch.float64),
    ],
)
def test_compiled_it_gives_what_it_gives_uncompiled(
    kernels: bool, order: int, inputs: int, outputs: int, d: bool, dtype: torch.dtype
) -> None:
    tensors = system(order, inputs, outputs, dtype, d)
    run = torch.compile(diagonal_lti, backend="aot_eager", fullgraph=True)
    for batch, length in ((8, 300), (3, 41), (1, 1)):  # several blocks, one, and a single step
        u = torch.randn(batch, length, inputs, dtype=dtype, requires_grad=True)
        tight = 1e-5 if dtype == torch.float32 else 1e-12
        for found, wanted in zip(derived(run, tensors, u), derived(diagonal_lti, tensors, u), strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=tight, atol=tight * float(wanted.abs().max()))


def test_what_it_says_of_itself_is_true() -> None:
    """Schema, shapes, aliases and gradients by PyTorch's own check."""
    for order, d in ((4, True), (6, False)):
        *parts, feed = system(order, 5, 5, torch.float64, d)
        rows = torch.randn(3 * 40, 5, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(torch.ops.compressm.chunked.default, (*parts, feed, rows, 3, False))


def test_autocast_does_not_reach_inside() -> None:
    torch.manual_seed(0)
    layer, u = LRU(width=96, order=4), torch.randn(2, 50, 96)
    found = []
    for run in (layer, torch.compile(layer, backend="eager"), torch.compile(layer, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(u)
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def nodes(length: int) -> int:
    """How many nodes the graphs of a wide model's step have, forward and backward."""
    from torch._dynamo.backends.common import aot_autograd

    found: list[int] = []

    def count(graph: Any, _: Any) -> Any:
        found.append(len(graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    model = SequenceModel(ModelConfig(inputs=1, outputs=2, width=96, order=4, blocks=1))
    assert model.blocks[0].ssm.layout(2, length).channels_first is False  # the chunked form
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=count, bw_compiler=count), fullgraph=True)
    compiled(torch.randn(2, length, 1)).sum().backward()
    assert len(found) == 2
    return sum(found)


def test_the_graph_does_not_grow_with_the_length() -> None:
    assert nodes(2000) == nodes(200)


@pytest.mark.slow
def test_inductor_compiles_a_wide_layer_and_agrees() -> None:
    torch.manual_seed(0)
    layer, u = LRU(width=96, order=4), torch.randn(2, 600, 96, requires_grad=True)
    wanted = layer(u)
    grads = torch.autograd.grad(wanted.square().sum(), [u, *layer.parameters()])
    found = torch.compile(layer, fullgraph=True)(u)
    again = torch.autograd.grad(found.square().sum(), [u, *layer.parameters()])
    for one, other in zip((found, *again), (wanted, *grads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_dropping_kernels_is_seen_by_what_is_compiled() -> None:
    if not kernels_run():
        pytest.skip("numba is not installed")
    tensors = [t for t in system(4, 5, 5, torch.float32, True) if t is not None]
    seen: list[bool] = []

    def run(u: Tensor) -> Tensor:
        return diagonal_chunked(*tensors[:6], u, tensors[6])

    def spy(graph: Any, _: Any) -> Any:
        seen.extend(n.args[-1] for n in graph.graph.nodes if "compressm.chunked" in str(n.target))
        return graph.forward

    compiled, u = torch.compile(run, backend=spy, fullgraph=True), torch.randn(2, 30, 5)
    one = compiled(u)
    before = use_kernels(False)
    try:
        other = compiled(u)
    finally:
        use_kernels(before)
    assert seen == [True, False]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
