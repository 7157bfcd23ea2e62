"""Gramians from data against sums written out in double precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters import moments as moments_module
from compressm.adapters.calibration import Calibration, Capture
from compressm.adapters.dense import DenseAdapter
from compressm.adapters.lru import LRUAdapter
from compressm.adapters.moments import (
    Extent,
    controllability_moments,
    controllability_sum,
    observability_moments,
    output_change,
)
from compressm.adapters.s4d import S4DAdapter
from compressm.layers.bidirectional import Bidirectional
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.layers.s4d import S4D
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import controllability_gramian, observability_gramian
from compressm.linalg.statespace import StateSpace

KINDS = [LRU, DenseSSM]


def make(kind: type[LRU | DenseSSM], width: int = 3, order: int = 5, seed: int = 0) -> LRU | DenseSSM:
    return kind(width, order, generator=torch.Generator().manual_seed(seed))


def system_of(layer: nn.Module) -> StateSpace:
    return (LRUAdapter() if isinstance(layer, LRU) else DenseAdapter()).read(layer)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cumsum(1) / 3


def states(system: StateSpace, u: Tensor, mask: Tensor | None = None, reverse: bool = False) -> Tensor:
    """x_k = A x_{k-1} + B u_k, or p_k = A* p_{k+1} + C* g_k in `reverse`, at the positions of the mask."""
    a = torch.diag(system.a) if system.is_diagonal else system.a
    a, b = (a.mH, system.c.mH) if reverse else (a, system.b)
    mask = torch.ones(u.shape[:2]) if mask is None else mask
    kept = []
    for case, valid in zip(u.double() * mask.double()[..., None], mask.bool(), strict=True):
        x = torch.zeros(system.order, dtype=b.dtype)
        for k in reversed(range(len(case))) if reverse else range(len(case)):
            x = a @ x + b @ case[k].to(b.dtype)
            if valid[k]:
                kept.append(x)
    return torch.stack(kept)


def mean_outer(x: Tensor) -> tuple[Tensor, Tensor]:
    """E[x x*] and E[x x^T]."""
    return x.mT @ x.conj() / len(x), x.mT @ x / len(x)


def from_real_frame(moments: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """E[x x*] and E[x x^T] from E[xi xi^T] with xi = [Re x; Im x]."""
    rr, ri, ir, ii = moments[:order, :order], moments[:order, order:], moments[order:, :order], moments[order:, order:]
    return torch.complex(rr + ii, ir - ri), torch.complex(rr - ii, ir + ri)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_inputs_give_the_second_moments_of_the_states(kind: type[LRU | DenseSSM], ragged: bool) -> None:
    layer = make(kind)
    system, capture, n = system_of(layer), Capture(), 5
    for seed, length in enumerate((40, 7)):
        mask = torch.arange(length)[None] < torch.tensor([[length], [3], [5]]) if ragged else None
        capture.inputs.append((inputs(3, length, 3, seed=seed), mask))
    x = torch.cat([states(system, *pair) for pair in capture.inputs])
    plain, mirrored = mean_outer(x)
    assert not ragged or len(x) == 40 + 7 + 2 * (3 + 5)
    assert close(controllability_moments(system, capture, Frame.COMPLEX), plain)
    in_real = controllability_moments(system, capture, Frame.REAL)
    if kind is LRU:
        found = from_real_frame(in_real, n)
        assert close(found[0], plain) and close(found[1], mirrored)
        assert float(mirrored.abs().max()) > 0.01 * float(plain.abs().max())  # the second kind of moment matters
    else:
        assert close(in_real, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_give_the_second_moments_of_the_costates(kind: type[LRU | DenseSSM]) -> None:
    layer = make(kind)
    system, capture = system_of(layer), Capture()
    mask = torch.arange(20)[None] >= torch.tensor([[0], [13], [7]])
    capture.gradients += [(inputs(3, 20, 3, seed=1), mask), (inputs(2, 9, 3, seed=2), None)]
    plain, mirrored = mean_outer(torch.cat([states(system, *pair, reverse=True) for pair in capture.gradients]))
    assert close(observability_moments(system, capture, Frame.COMPLEX), plain)
    if kind is LRU:
        found = from_real_frame(observability_moments(system, capture, Frame.REAL), 5)
        # In [Re x; Im x] the output row is [Re c, -Im c]: the costate there is [Re p; Im p] with p from C*.
        assert close(found[0], plain) and close(found[1], mirrored)


@pytest.mark.parametrize("kind", KINDS)
def test_costates_are_the_losss_gradients_at_the_states(kind: type[LRU | DenseSSM]) -> None:
    layer, u = make(kind), inputs(4, 15, 3)
    with Calibration(nn.ModuleDict({"ssm": layer})) as calibration:
        layer(u).tanh().square().sum().backward()
    system = system_of(layer)
    a = torch.diag(system.a) if system.is_diagonal else system.a
    shaken = torch.zeros(15, 4, 5, dtype=a.dtype, requires_grad=True)
    x, loss = torch.zeros(4, 5, dtype=a.dtype), torch.zeros((), dtype=torch.float64)
    for k in range(15):
        x = x @ a.mT + u[:, k].to(a.dtype) @ system.b.mT + shaken[k]
        y = x @ system.c.mT
        y = (y.real if y.is_complex() else y) + u[:, k].double() @ system.d.mT
        loss = loss + y.tanh().square().sum()
    (p,) = torch.autograd.grad(loss, shaken)
    found = observability_moments(system, calibration.capture("ssm"), Frame.COMPLEX)
    assert close(found, mean_outer(p.flatten(0, 1))[0], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quadratic_loss_gives_the_weighted_gramian(kind: type[LRU | DenseSSM]) -> None:
    # 1/2 |W (y - t)|^2 with residuals that run through a basis: the gradients are the columns of M = W^T W, and the
    # mean of p p* over cases and time is that of the Gramians of (M C, A) over the steps that are left.
    layer, length = make(kind), 12
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    u = inputs(length * 3, length, 3)
    with torch.no_grad():
        target = layer(u) - torch.eye(length * 3).view(length * 3, length, 3)
    with Calibration(nn.ModuleDict({"ssm": layer})) as calibration:
        (((layer(u) - target) @ w.mT).square().sum() / 2).backward()
    system = system_of(layer)
    weighted = StateSpace(system.a, system.b, (w.mT @ w).to(system.c.dtype) @ system.c)
    wanted = sum(observability_gramian(weighted, Frame.REAL, horizon) for horizon in range(1, length + 1))
    found = observability_moments(system, calibration.capture("ssm"), Frame.REAL)
    assert close(found, wanted / (length * length * 3), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_impulses_give_the_gramian(kind: type[LRU | DenseSSM]) -> None:
    system, length = system_of(make(kind)), 12
    capture = Capture([(torch.eye(length * 3).view(length * 3, length, 3), None)])
    wanted = sum(controllability_gramian(system, Frame.REAL, horizon) for horizon in range(1, length + 1))
    assert close(controllability_moments(system, capture, Frame.REAL), wanted / (length * length * 3))


def test_two_uses_in_one_pass_are_pooled() -> None:
    layer, u = make(LRU), inputs(2, 10, 3)
    with Calibration(nn.ModuleDict({"ssm": layer})) as calibration:
        middle = layer(u).tanh()
        layer(middle).sum().backward()
    system = system_of(layer)
    wanted, _ = mean_outer(torch.cat([states(system, u), states(system, middle.detach())]))
    assert close(controllability_moments(system, calibration.capture("ssm"), Frame.COMPLEX), wanted)


def test_both_directions_of_a_bidirectional_layer_leave_padding_out() -> None:
    layer, u = Bidirectional(make(LRU), make(LRU, seed=1)), inputs(2, 10, 3)
    mask = torch.arange(10)[None] < torch.tensor([[10], [4]])
    with Calibration(layer) as calibration:
        (layer(u, mask) * mask[..., None]).square().sum().backward()
    for name, flip in (("ahead", False), ("behind", True)):
        capture, system = calibration.capture(name), system_of(layer.get_submodule(name))
        at = mask.flip(1) if flip else mask
        x = states(system, u.flip(1) if flip else u, at)
        assert len(x) == 14
        assert close(controllability_moments(system, capture, Frame.COMPLEX), mean_outer(x)[0])
        p = states(system, capture.gradients[0][0], at, reverse=True)
        assert close(observability_moments(system, capture, Frame.COMPLEX), mean_outer(p)[0])


def test_what_is_padded_does_not_matter() -> None:
    system, u = system_of(make(LRU)), inputs(2, 10, 3)
    mask = torch.arange(10)[None] < torch.tensor([[10], [4]])
    wild = torch.where(mask[..., None], u, torch.full((), 1e4))
    for f in (controllability_moments, output_change_to_half):
        assert torch.equal(
            torch.as_tensor(f(system, Capture([(u, mask)]), Frame.REAL)),
            torch.as_tensor(f(system, Capture([(wild, mask)]), Frame.REAL)),
        )


def output_change_to_half(system: StateSpace, capture: Capture, frame: Frame) -> float:
    half = StateSpace(system.a[:2], system.b[:2], system.c[:, :2], system.d)
    change = output_change(system, half, capture)
    assert change is not None and change > 0
    return change


def test_many_positions_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    system, u = system_of(make(LRU)), inputs(4, 100, 3)
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", 140)  # 400 positions: every third step
    monkeypatch.setattr(moments_module, "_SUMMED", 0)  # as where moments are large
    x = states(system, u).view(4, 100, 5)[:, ::3].flatten(0, 1)
    assert close(controllability_moments(system, Capture([(u, None)]), Frame.COMPLEX), mean_outer(x)[0])


@pytest.mark.parametrize("length", [3, 8, 16])
def test_sequences_shorter_than_a_block_do_not_count_by_their_ends_alone(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, u = system_of(make(LRU)), inputs(40, length, 3)
    monkeypatch.setattr(moments_module, "_LEAST_SAMPLES", 20)
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", 20)  # blocks of 6, 16, 32 steps, one of them looked at
    monkeypatch.setattr(moments_module, "_SUMMED", 0)
    x = states(system, u).view(40, length, 5)
    seen = x if length < 16 else x[:, 1::2]
    wanted = mean_outer(seen.flatten(0, 1))[0]
    assert close(controllability_moments(system, Capture([(u, None)]), Frame.COMPLEX), wanted)


def test_padding_does_not_hide_how_short_sequences_are(monkeypatch: pytest.MonkeyPatch) -> None:
    system, u = system_of(make(LRU)), inputs(40, 64, 3)
    mask = torch.arange(64)[None] < torch.tensor([[16]] * 39 + [[0]])
    monkeypatch.setattr(moments_module, "_LEAST_SAMPLES", 20)
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", 20)
    monkeypatch.setattr(moments_module, "_SUMMED", 0)
    x = states(system, u).view(40, 64, 5)[:39, 1:16:2]  # as of sequences that are 16 long
    wanted = mean_outer(x.flatten(0, 1))[0]
    assert close(controllability_moments(system, Capture([(u, mask)]), Frame.COMPLEX), wanted)


def test_sums_of_captures_of_other_lengths_add_up_to_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_of(make(LRU))
    monkeypatch.setattr(moments_module, "_LEAST_SAMPLES", 20)
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", 20)
    monkeypatch.setattr(moments_module, "_SUMMED", 0)
    passes = [(inputs(10, length, 3, seed=length), None) for length in (64, 16)]
    extents = [Extent.of([each]) for each in passes]
    together = Extent.joined([*extents, Extent.of([]), Extent.of([(inputs(2, 0, 3), None)])])
    assert together == Extent.of(passes) == Extent(800, 16)
    parts = [controllability_sum(system, Capture([each]), Frame.COMPLEX, together) for each in passes]
    whole = controllability_sum(system, Capture(passes), Frame.COMPLEX, together)
    assert whole is not None and all(part is not None for part in parts)
    assert sum(part.count for part in parts if part is not None) == whole.count
    assert close(sum(part.total for part in parts if part is not None), whole.total)  # type: ignore[arg-type]


MASKS = {
    "none": None,
    "ragged": torch.arange(100)[None] < torch.tensor([[100], [41], [7], [0]]),
    "long": torch.arange(100)[None] < torch.tensor([[100], [80], [72], [0]]),
    "left": torch.arange(100)[None] >= torch.tensor([[100], [41], [7], [0]]),
    "holes": torch.rand(4, 100, generator=torch.Generator().manual_seed(3)) < 0.7,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("most", [45, 130, 399])  # 9, 4, 2 steps from one outer product to the next
@pytest.mark.parametrize("frame", Frame)
@pytest.mark.parametrize("kind", KINDS)
def test_all_positions_count_where_few_outer_products_are_formed(
    kind: type[LRU | DenseSSM], frame: Frame, most: int, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", most)
    system = system_of(make(kind, width=1, order=12))
    capture = Capture([(inputs(4, 100, 1), MASKS[mask])], [(inputs(4, 100, 1, seed=1), MASKS[mask])])
    for found, x in (
        (controllability_moments(system, capture, frame), states(system, *capture.inputs[0])),
        (observability_moments(system, capture, frame), states(system, *capture.gradients[0], reverse=True)),
    ):
        if frame is Frame.REAL and kind is LRU:
            x = torch.cat([x.real, x.imag], -1)
        assert close(found, mean_outer(x)[0])


def test_blocks_of_a_bank_and_blocks_seen_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = S4D(3, 12, generator=torch.Generator().manual_seed(0))
    system, capture = S4DAdapter().read(layer), Capture([(inputs(4, 100, 3), MASKS["long"])])
    every = controllability_moments(system, capture, Frame.REAL)
    monkeypatch.setattr(moments_module, "_MOST_SAMPLES", 45)
    assert close(controllability_moments(system, capture, Frame.REAL), every)
    monkeypatch.setattr(moments_module, "_SUMMED", 3 * 24**2 * 4)  # 4 of 9 steps
    in_part = controllability_moments(system, capture, Frame.REAL)
    mask = MASKS["long"] & ((torch.arange(100) + 8) % 9 >= 5)  # blocks end with the last step: 8 pad the first
    x = torch.stack([
        states(StateSpace(system.a[h], system.b[h], system.c[h]), capture.inputs[0][0][..., h : h + 1])
        .view(4, 100, 12)[mask]
        for h in range(3)
    ])  # fmt: skip
    x = torch.cat([x.real, x.imag], -1)
    assert close(in_part, x.mT @ x / x.shape[1], 1e-4)


def test_without_passes_there_are_no_moments() -> None:
    system = system_of(make(LRU))
    assert controllability_moments(system, Capture(), Frame.REAL) is None
    assert observability_moments(system, Capture(), Frame.REAL) is None
    assert output_change(system, system, Capture()) is None
    nothing = Capture([(inputs(2, 5, 3), torch.zeros(2, 5).bool())], [(torch.zeros(2, 5, 3), None)])
    assert controllability_moments(system, nothing, Frame.REAL) is None
    assert observability_moments(system, nothing, Frame.REAL) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_passes_in_other_dtypes(dtype: torch.dtype) -> None:
    layer, u = make(LRU).to(dtype), inputs(2, 10, 3).to(dtype)
    with Calibration(nn.ModuleDict({"ssm": layer})) as calibration:
        layer(u).sum().backward()
    capture, system = calibration.capture("ssm"), system_of(layer)
    assert close(controllability_moments(system, capture, Frame.COMPLEX), mean_outer(states(system, u))[0])
    gradient = torch.ones(2, 10, 3)
    assert close(
        observability_moments(system, capture, Frame.COMPLEX), mean_outer(states(system, gradient, reverse=True))[0]
    )


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("what", ["inputs", "weights"])
def test_sizes_whose_squares_leave_single_precision(size: float, what: str) -> None:
    system, u = system_of(make(LRU)), inputs(2, 10, 3)
    wanted = mean_outer(states(system, u))[0] * size**2
    if what == "weights":
        system = replace(system, b=system.b * size)
    else:
        u = u * size
    assert close(controllability_moments(system, Capture([(u, None)]), Frame.COMPLEX), wanted)


def test_an_output_that_overflows_has_no_change() -> None:
    system = system_of(make(LRU))
    assert output_change(replace(system, c=system.c * 1e30), system, Capture([(inputs(2, 9, 3) * 1e30, None)])) is None


def test_a_complex_output_changes_in_both_its_parts() -> None:
    plain = system_of(make(LRU))
    system = StateSpace(plain.a, plain.b, plain.c, output="complex")
    small, u = StateSpace(plain.a[:3], plain.b[:3], plain.c[:, :3], output="complex"), inputs(2, 30, 3)
    y, change = system.simulate(u.double()), small.simulate(u.double()) - system.simulate(u.double())
    found = output_change(system, small, Capture([(u, None)]))
    assert found == pytest.approx(float(change.norm() / y.norm()), rel=1e-4)


def test_a_pass_without_positions_changes_nothing() -> None:
    system = system_of(make(LRU))
    assert system.simulate(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    assert output_change(system, system, Capture([(torch.zeros(2, 0, 3), None)])) == 0
    assert controllability_moments(system, Capture([(torch.zeros(2, 0, 3), None)]), Frame.REAL) is None


def test_weights_whose_squares_overflow_give_moments_that_are_not_finite() -> None:
    system, u = system_of(make(LRU)), inputs(2, 10, 3)
    found = controllability_moments(replace(system, b=system.b * 1e160), Capture([(u, None)]), Frame.REAL)
    assert found is not None and not bool(found.isfinite().all())  # the analysis says so, naming the layer
