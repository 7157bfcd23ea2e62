"""Instructions on single vectors against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressm.ops import kernels_run

if not kernels_run():
    pytest.skip("numba is not installed", allow_module_level=True)

from compressm.ops.kernels import tape

SIZES = [0, 1, 15, 16, 17, 31, 32, 33, 48, 100]
MARK = 12345.0


def framed(*shape: int) -> tuple[Tensor, Tensor]:
    """Random numbers, and the memory around them, which must stay as it is."""
    count = int(torch.Size(shape).numel())
    memory = torch.full((count + 64,), MARK)
    inner = memory[32 : 32 + count]
    inner.normal_()
    return inner.view(shape), memory


def untouched(memory: Tensor) -> bool:
    return bool((memory[:32] == MARK).all()) and bool((memory[-32:] == MARK).all())


def close(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got.double(), wanted, rtol=2e-6, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 70), columns=st.integers(0, 70), seed=st.integers(0, 1000))
def test_product_of_any_shape(rows, columns, seed) -> None:
    torch.manual_seed(seed)
    matrix, x = torch.randn(rows, columns), torch.randn(columns)
    y, memory = framed(rows)
    tape.Tape([tape.product(tape.panels(matrix).contiguous(), x, y)])()
    exact = matrix.double() @ x.double()
    scale = matrix.double().abs() @ x.double().abs()
    assert bool(((y - exact).abs() <= 1e-6 * scale).all())
    assert untouched(memory)


def test_a_long_product_is_as_exact_as_its_eight_sums() -> None:
    matrix, x = torch.rand(64, 4001), torch.rand(4001)
    y = torch.empty(64)
    tape.Tape([tape.product(tape.panels(matrix).contiguous(), x, y)])()
    assert torch.allclose(y.double(), matrix.double() @ x.double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_pointwise_instructions(size) -> None:
    torch.manual_seed(size)
    x, memory = framed(size)
    source, factor, both = torch.randn(size), torch.randn(size), 3 * torch.randn(2 * size)

    exact = x.double()
    tape.Tape([tape.gelu(x)])()
    assert close(x, exact + exact * torch.erf(exact))

    exact = x.double()
    tape.Tape([tape.gate(both, x)])()
    value, gate = both.double().chunk(2)
    assert close(x, exact + value * gate.sigmoid())

    exact = x.double()
    tape.Tape([tape.add_product(factor, source, x)])()
    assert close(x, exact + factor.double() * source.double())

    tape.Tape([tape.copy(source, x)])()
    assert torch.equal(x, source)
    assert untouched(memory)


@pytest.mark.parametrize("order", SIZES)
def test_states_turn(order) -> None:
    torch.manual_seed(order)
    state, memory = framed(order, 2)
    pole, drive = torch.randn(order, 2), torch.randn(order, 2)
    p, u, x = (torch.view_as_complex(t.double()) for t in (pole, drive, state))
    tape.Tape([tape.advance(pole, drive, state)])()
    assert close(state, torch.view_as_real(p * x + u))
    assert untouched(memory)


def test_instructions_run_in_order_on_what_memory_holds_then() -> None:
    a, b, c = torch.zeros(5), torch.zeros(5), torch.ones(5)
    run = tape.Tape([tape.copy(a, b), tape.add_product(b, b, c), tape.copy(c, a)])
    a.fill_(2)
    run()
    assert torch.equal(a, torch.full((5,), 5.0))
    run()
    assert torch.equal(a, torch.full((5,), 30.0))
    tape.Tape([])()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_place(bad) -> None:
    matrix, x = torch.randn(20, 3), torch.randn(3)
    matrix[7, 1] = bad
    y = torch.empty(20)
    tape.Tape([tape.product(tape.panels(matrix).contiguous(), x, y), tape.gelu(y)])()
    assert [k for k in range(20) if not y[k].isfinite()] == [7]
