"""The second half of a block with channels last, and what is made anew instead of stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compressm.layers import LRU, Block, MaskedBatchNorm
from compressm.layers.layout import Layout
from compressm.ops import CostTable, Form, diagonal_reference, gated, kernels_run, use_cost_table
from compressm.ops.blocks import states_kept
from compressm.ops.gated import gelu_gate_rows
from compressm.ops.memory import reusable
from compressm.ops.products import times
from compressm.ops.remaking import Source, remake, remember, stored

needs_kernels = pytest.mark.skipif(not kernels_run(), reason="numba is not installed")


def leaves(rows: int, inputs: int, outputs: int) -> list[Tensor]:
    shapes = (rows, inputs), (rows, outputs), (2 * outputs, inputs), (2 * outputs,)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@needs_kernels
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 3, 5), (130, 33, 16), (300, 16, 47)])
def test_against_its_definition(monkeypatch, sizes) -> None:
    """Output and gradients, with the last of several steps of rows incomplete."""
    monkeypatch.setattr(gated, "_ELEMENTS", 1)
    exact = [t.requires_grad_() for t in leaves(*sizes)]
    x, skip, weight, bias = exact
    wanted = skip + functional.glu(functional.linear(functional.gelu(x), weight, bias))
    single = [t.detach().float().requires_grad_() for t in exact]
    got = gelu_gate_rows(*single, 0.0)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    signal = torch.randn_like(wanted)
    for grad, expected in zip(
        torch.autograd.grad(got, single, signal.float()), torch.autograd.grad(wanted, exact, signal), strict=True
    ):
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_kernels
def test_dropout_does_not_depend_on_how_many_rows_are_computed_at_a_time(monkeypatch) -> None:
    given = [t.float().requires_grad_() for t in leaves(150, 9, 20)]
    results = []
    for elements in (1, 1 << 18):
        monkeypatch.setattr(gated, "_ELEMENTS", elements)
        torch.manual_seed(0)
        y = gelu_gate_rows(*given, 0.3)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for few, many in zip(*results, strict=True):
        assert torch.allclose(few, many, rtol=1e-4, atol=1e-4)
    assert (results[0][0] == given[1]).double().mean() == pytest.approx(0.3, abs=0.04)


@needs_kernels
@pytest.mark.parametrize("batch", [1, 5, 200])
def test_a_gradient_that_is_the_same_all_along(monkeypatch, batch) -> None:
    """As pooling over time gives it: expanded, and never written out as a whole."""
    monkeypatch.setattr(gated, "_ELEMENTS", 1)
    given = [torch.randn(40, batch, 12), torch.randn(40, batch, 8), torch.randn(16, 12), torch.randn(16)]
    given = [t.requires_grad_() for t in given]
    signal = torch.randn(batch, 8).expand(40, batch, 8)
    results = []
    for grad in (signal, signal.contiguous()):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(gelu_gate_rows(*given, 0.2), given, grad))
    for expanded, written in zip(*results, strict=True):
        assert torch.equal(expanded, written)


@needs_kernels
def test_a_block_stores_no_normalised_signal() -> None:
    """What is kept for the backward pass are the input, the output, two signals of its size, and the states."""
    before = use_cost_table(CostTable({form.value: 1e12 for form in Form if form is not Form.CHUNKED}))
    try:
        block = Block(MaskedBatchNorm(48), LRU(48, 24), 0.1)
        x = Layout.TIME.arrange(torch.randn(4, 200, 48)).requires_grad_()
        kept: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = block(x)
        signal, parameters = x.numel() * 4, 4 * sum(p.numel() for p in block.parameters())
        assert sum(kept.values()) <= 5 * signal + 1.1 * parameters
        y.sum().backward()
    finally:
        use_cost_table(before)


def test_what_was_changed_in_place_is_stored_itself() -> None:
    x, mean, scale = torch.randn(5, 3), torch.randn(3), torch.randn(3)
    made = remake(x, mean, scale)
    remember(made, Source(x, mean, scale))
    assert torch.equal(remake(*stored(made)), made)
    assert stored(made)[0] is not made
    made.mul_(2)
    assert stored(made) == (made, None, None)
    assert stored(x) == (x, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_products_in_both_libraries(dtype, bias, flip) -> None:
    rows, weight = torch.randn(300, 260, dtype=dtype), torch.randn(280, 260, dtype=dtype)
    weight = weight.mT.contiguous().mT if flip else weight
    shift = torch.randn(280, dtype=dtype) if bias else None
    wanted = functional.linear(rows.double(), weight.double(), None if shift is None else shift.double())
    assert (times(rows, weight, shift) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("shape", [(3, 5), (300, 400), (2, 90, 700)])
def test_memory_of_a_freed_tensor_takes_an_equal_one(shape) -> None:
    made = reusable(shape, torch.empty(0))
    assert made.shape == shape
    assert made.is_contiguous()
    assert made.dtype == torch.float32
    assert made.data_ptr() % 64 == 0
    made.fill_(2.0)
    assert made.sum() == 2 * made.numel()
    assert reusable(shape, torch.empty(0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("order", "inputs", "kept"), [(2, 8, 6), (4, 8, 3), (8, 8, 1), (100, 8, 0), (0, 8, 6), (4, 0, 0)]
)
def test_half_as_many_numbers_of_states_are_stored_as_of_inputs(order, inputs, kept) -> None:
    assert states_kept(order, inputs, 6) == kept


@pytest.mark.parametrize("order", [6, 12, 24, 200])
def test_states_that_are_stored_and_states_computed_anew(order) -> None:
    """The same gradients, whatever share of the blocks stores its states."""
    model = LRU(12, order).double()
    u = torch.randn(2, 100, 12, dtype=torch.float64, requires_grad=True)
    before = use_cost_table(CostTable({form.value: 1e12 for form in Form if form is not Form.CHUNKED}))
    try:
        y = model(u)
        signal = torch.randn_like(y)
        got = torch.autograd.grad(y, [u, *model.parameters()], signal)
    finally:
        use_cost_table(before)
    system = model.system()
    poles, drive, readout = (system.nu, system.theta), (system.b_re, system.b_im), (system.c_re, system.c_im)
    plain = diagonal_reference(*poles, *drive, *readout, u) + u * model.D
    for grad, wanted in zip(got, torch.autograd.grad(plain, [u, *model.parameters()], signal), strict=True):
        assert (grad - wanted).abs().max() <= 1e-9 * wanted.abs().max()
