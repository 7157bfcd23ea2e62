"""Compiled kernels against plain torch in float64."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from compressm.errors import InvalidSystemError
from compressm.ops import Form, Machine, diagonal_lti, kernels_run, use_kernels
from compressm.ops.pointwise import dropout, gate_dropout, gelu_dropout, gelu_linear, linear, standardize
from compressm.ops.recurrence import rounded_poles

needs_kernels = pytest.mark.skipif(not kernels_run(), reason="numba is not installed")


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    got, wanted = got.detach(), wanted.detach()
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-12))


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 40),
    length=st.integers(1, 200),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    order=st.integers(1, 40),
    form=st.sampled_from([Form.LANES, Form.CHUNKED, Form.CONVOLUTION]),
)
def test_output_and_all_gradients_of_any_shape(batch, length, inputs, outputs, order, form) -> None:
    generator = torch.Generator().manual_seed(batch + 41 * length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    nu, theta = normal(order).abs() * 0.1, normal(order)
    matrices = [normal(*shape) for shape in ((order, inputs), (order, inputs), (outputs, order), (outputs, order))]
    feed = normal(inputs) if inputs == outputs else None
    exact = [t.requires_grad_() for t in (nu, theta, *matrices, normal(batch, length, inputs))]
    weight = normal(batch, length, outputs)
    wanted = diagonal_lti(*exact, form=Form.REFERENCE, feedthrough=feed)
    grads = torch.autograd.grad(wanted, exact, weight)
    single = [t.detach() if i < 2 else t.detach().float() for i, t in enumerate(exact)]
    single = [t.requires_grad_() for t in single]
    got = diagonal_lti(*single, form=form, feedthrough=None if feed is None else feed.float())
    assert relative(got, wanted) <= 1e-5
    for grad, expected in zip(torch.autograd.grad(got, single, weight.float()), grads, strict=True):
        assert (grad - expected).norm() <= 1e-3 * expected.norm() + 1e-4


@needs_kernels
def test_one_thread_and_many_give_the_same_bits(make_system, signal) -> None:
    parameters = make_system(24, 5, 5, dtype=torch.float32)
    u, x = signal(70, 60, 5, dtype=torch.float32), signal(40, 3000, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.detach().requires_grad_() for t in (*parameters, u)]
            torch.manual_seed(0)
            y = diagonal_lti(*leaves, form=Form.LANES)
            rest = gelu_dropout(x, 0.3), gate_dropout(x, x[:20].contiguous(), 0.3, True)
            results.append((y, *torch.autograd.grad(y.sum(), leaves), *rest))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
def test_gelu_over_all_magnitudes() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_003), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38])])
    exact, single = x.double().requires_grad_(), x.clone().requires_grad_()
    wanted, got = functional.gelu(exact), gelu_dropout(single, 0.0)
    assert ((got - wanted).abs() <= 3e-7 * (1 + wanted.abs())).all()
    (expected,), (grad,) = (torch.autograd.grad(y.sum(), leaf) for y, leaf in ((wanted, exact), (got, single)))
    assert (grad - expected).abs().max() <= 1e-6


@needs_kernels
def test_what_is_not_a_number_is_not_hidden() -> None:
    x = torch.tensor([math.nan, 1.0] * 20)
    both, skip = torch.cat([x, x]).view(2, 40), torch.zeros(1, 40)
    assert torch.equal(gelu_dropout(x, 0.0).isnan(), x.isnan())
    assert torch.equal(gate_dropout(both, skip, 0.0, True)[0].isnan(), x.isnan())
    assert standardize(x[None].clone(), True, 1e-5)[0].isnan().all()


@needs_kernels
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("sizes", [(3, 7), (16, 128), (130, 33), (1, 5000)])
def test_gate_against_torch(channels_first, sizes) -> None:
    channels, positions = sizes
    shape = (channels, positions) if channels_first else (positions, channels)
    double = (2 * channels, positions) if channels_first else (positions, 2 * channels)
    both, skip, weight = (torch.randn(s, dtype=torch.float64) for s in (double, shape, shape))
    exact = [both.requires_grad_(), skip.requires_grad_()]
    single = [t.detach().float().requires_grad_() for t in exact]
    wanted = exact[1] + functional.glu(exact[0], dim=0 if channels_first else 1)
    got = gate_dropout(*single, 0.0, channels_first)
    assert relative(got, wanted) <= 1e-6
    for grad, expected in zip(
        torch.autograd.grad(got, single, weight.float()), torch.autograd.grad(wanted, exact, weight), strict=True
    ):
        assert relative(grad, expected) <= 1e-6


@needs_kernels
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("sizes", [(3, 7), (16, 128), (130, 33), (8, 40_000), (1, 1)])
def test_standardize_against_its_definition(channels_first, sizes) -> None:
    x = torch.randn(sizes if channels_first else sizes[::-1], dtype=torch.float64) * 3 + 20
    dim = 1 if channels_first else 0
    weight, exact = torch.randn_like(x), x.clone().requires_grad_()
    mean, var = exact.mean(dim, keepdim=True), exact.var(dim, unbiased=False, keepdim=True)
    wanted = (exact - mean) / torch.sqrt(var + 1e-5)
    single = x.float().requires_grad_()
    got, found_mean, found_var, scale = standardize(single, channels_first, 1e-5)
    assert torch.allclose(scale.double(), torch.rsqrt(var + 1e-5).flatten(), rtol=1e-4)
    assert torch.allclose(found_mean.double(), mean.flatten(), rtol=1e-5)
    assert torch.allclose(found_var.double(), var.flatten(), rtol=1e-4, atol=1e-6)
    assert torch.allclose(got.double(), wanted, atol=2e-5)
    (grad,) = torch.autograd.grad(got, single, weight.float())
    (expected,) = torch.autograd.grad(wanted, exact, weight)
    assert torch.allclose(grad.double(), expected, rtol=1e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("sizes", [(20_000, 2), (1, 70_000), (40, 900)])
def test_a_large_mean_costs_no_digits_of_the_variance(sizes) -> None:
    """Also with more channels than one part of the work has positions."""
    for channels_first in (True, False):
        x = torch.randn(sizes if channels_first else sizes[::-1]) + 1000
        _, mean, var, _ = standardize(x, channels_first, 1e-5)
        dim = 1 if channels_first else 0
        assert torch.allclose(mean.double(), x.double().mean(dim), rtol=1e-7)
        assert torch.allclose(var.double(), x.double().var(dim, unbiased=False), rtol=1e-5, atol=1e-8)


@needs_kernels
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (5, 3, 2, 40), (14, 8, 9, 64)])
def test_poles_are_rounded_as_in_torch(sizes) -> None:
    from compressm.ops.kernels import parameters

    order, inputs, outputs, block = sizes
    nu, theta = torch.rand(order, dtype=torch.float64), torch.randn(order, dtype=torch.float64)
    nu[0] = math.inf  # a pole at zero
    matrices = tuple(torch.randn(s) for s in [(order, inputs)] * 2 + [(outputs, order)] * 2)
    poles, exact, b, c = parameters.packed(nu, theta, matrices, block)
    for found, wanted in zip(poles.view(2, 2, -1)[..., :order], rounded_poles(nu, theta, block), strict=True):
        assert torch.allclose(found.flatten(), wanted, rtol=1e-6, atol=1e-14)
    assert torch.allclose(torch.view_as_complex(exact), torch.polar(torch.exp(-nu), theta))
    assert torch.equal(b[:order, :, :inputs], torch.stack(matrices[:2], 1))
    assert torch.equal(c[:order, :, :outputs], torch.stack([matrices[2].mT, -matrices[3].mT], 1))
    assert sum(float(t.abs().sum()) for t in (b[order:], b[..., inputs:], c[order:], c[..., outputs:])) == 0


@needs_kernels
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_linear_map_of_the_activation_stores_its_input_only(channels_first, p) -> None:
    """The same bits as the two one after the other, and gradients to within rounding; frozen weights included."""
    shape = (5, 33, 7) if channels_first else (33, 7, 5)
    x = torch.randn(shape, requires_grad=True)
    weight, bias = torch.randn(8, 5, requires_grad=True), torch.randn(8, requires_grad=True)
    stored: list[torch.Tensor] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        stored.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        torch.manual_seed(1)
        got = gelu_linear(x, weight, bias, p, channels_first)
    assert {t.data_ptr() for t in stored} == {x.data_ptr(), weight.data_ptr()}
    torch.manual_seed(1)
    wanted = linear(gelu_dropout(x, p), weight, bias, channels_first)
    assert torch.equal(got, wanted)
    signal = torch.randn(got.shape)
    grads = torch.autograd.grad(wanted, (x, weight, bias), signal)
    for found, expected in zip(torch.autograd.grad(got, (x, weight, bias), signal), grads, strict=True):
        assert relative(found, expected) <= 1e-6
    torch.manual_seed(1)
    frozen = gelu_linear(x, weight.detach(), bias.detach(), p, channels_first)
    assert torch.equal(torch.autograd.grad(frozen, x, signal)[0], grads[0])


@needs_kernels
@pytest.mark.parametrize("drop", [lambda x, p: gelu_dropout(x + 50, p) / 50, None], ids=["gelu", "gate"])
def test_dropout_inside_kernels(drop) -> None:
    """The asked share, independent of position, another choice each call, the same backwards, following the seed."""

    def apply(x: torch.Tensor, p: float) -> torch.Tensor:
        if drop is not None:
            return drop(x, p)
        return gate_dropout(torch.cat([x + 1, x + 100]), torch.zeros_like(x), p, channels_first=True)

    x = torch.zeros(100, 10_000, requires_grad=True)
    y = apply(x, 0.1)
    kept = y.detach().flatten() != 0
    assert torch.allclose(y.detach().flatten()[kept], torch.tensor(1 / 0.9), rtol=1e-3)
    assert abs((~kept).double().mean().item() - 0.1) < 4 * math.sqrt(0.09 / 1e6)
    for lag in (1, 2, 16, 100, 10_000):
        both = (~kept[lag:] & ~kept[:-lag]).double().mean().item()
        assert abs(both - 0.01) < 5 * math.sqrt(0.01 / 1e6)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad.flatten() != 0, kept)
    torch.manual_seed(3)
    first, second = apply(x, 0.1), apply(x, 0.1)
    assert abs(((first == 0) & (second == 0)).double().mean().item() - 0.01) < 5 * math.sqrt(0.01 / 1e6)
    torch.manual_seed(3)
    assert torch.equal(apply(x, 0.1), first)


@needs_kernels
def test_kernels_can_be_forbidden() -> None:
    x = torch.randn(100)
    before = use_kernels(False)
    try:
        assert not kernels_run()
        assert not Machine.of(x).kernels
        assert torch.equal(gelu_dropout(x, 0.0), functional.gelu(x))
        one, u = torch.ones(1, 1), torch.randn(1, 4, 1)
        with pytest.raises(InvalidSystemError, match=r"compressm\[fast\]"):
            diagonal_lti(one[0], one[0], one, one, one, one, u, form=Form.LANES)
    finally:
        use_kernels(before)


def test_without_numba_all_works_in_plain_torch() -> None:
    """In a process where numba cannot be imported."""
    code = """
import sys
sys.modules["numba"] = None
import torch
from compressm.layers import ModelConfig, SequenceModel
from compressm.ops import kernels_run
model = SequenceModel(ModelConfig(width=4, order=6))
model(torch.randn(20, 30, 1)).sum().backward()
assert not kernels_run()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_environment_forbids_what_a_program_wants() -> None:
    code = """
from compressm.ops import kernels_missing, kernels_run, use_kernels
use_kernels(True)  # as a resumed run does
assert not kernels_run()
assert "COMPRESSM_KERNELS" in kernels_missing()
"""
    environment = {**os.environ, "COMPRESSM_KERNELS": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@needs_kernels
@pytest.mark.parametrize("name", ["haswell", "generic"])
def test_kernels_on_lesser_processors(name) -> None:
    """Registers of 8 and of 4 numbers, the last without fused multiply-adds; nothing comes from the cache."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("named processors are of the x86 family")
    code = """
import torch
from compressm.layers import ModelConfig, SequenceModel, Streamer
from compressm.ops import Form, diagonal_lti, use_kernels
from compressm.ops.pointwise import gelu_dropout
torch.manual_seed(0)
p = [torch.rand(5), torch.rand(5), *(torch.randn(5, 3) for _ in range(2)), *(torch.randn(3, 5) for _ in range(2))]
u = torch.randn(18, 40, 3, requires_grad=True)
wanted = diagonal_lti(*p, u, form=Form.REFERENCE)
(grad,) = torch.autograd.grad(wanted.square().sum(), u)
for form in (Form.LANES, Form.CHUNKED, Form.CONVOLUTION):
    y = diagonal_lti(*p, u, form=form)
    (found,) = torch.autograd.grad(y.square().sum(), u)
    assert torch.allclose(y, wanted, atol=1e-4) and torch.allclose(found, grad, rtol=1e-3, atol=1e-3), form
x = torch.randn(1003)
assert torch.allclose(gelu_dropout(x, 0.0), torch.nn.functional.gelu(x), atol=1e-6)
model = SequenceModel(ModelConfig(width=20, order=11, blocks=2)).eval()
streamer, u = Streamer(model), torch.randn(1, 30, 1)
scores = [streamer.step(u[:, k]) for k in range(30)]
use_kernels(False)
assert torch.allclose(scores[-1], model(u), atol=1e-5)
"""
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "" if name == "generic" else "+avx2,+fma"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=os.environ | settings)


def test_dropout_of_everything_it_may_drop() -> None:
    assert float((dropout(torch.ones(10_000), 0.99999) == 0).float().mean()) > 0.99
