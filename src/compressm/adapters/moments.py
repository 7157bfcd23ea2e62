"""Gramians from data: second moments of a layer's states and costates over captured passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from compressm.adapters.blocks import Blocks, Leap, state_blocks
from compressm.adapters.calibration import Capture
from compressm.adapters.holding import single
from compressm.adapters.joint import JointMoments
from compressm.linalg.forms import Frame, frame_states
from compressm.linalg.gramians import dual
from compressm.linalg.statespace import StateSpace

_SAMPLES = 16  # states of which outer products are formed, for each real state, evenly spread over time,
_LEAST_SAMPLES, _MOST_SAMPLES = 4_000, 16_000  # within these limits
_SPREAD = 8  # positions of the shortest sequences that are looked at, where not all are
_NEAR_ONE = 2**10  # inputs of which the largest is this near 1 are taken as they are
_BLOCKS, _LEAST_BLOCK = 4, 64  # of rows of a sum of outer products, and of how many rows at least
_SUMMED = 2**22  # numbers in the moments that are advanced from sample to sample, where that is more than one step


Passes = Sequence[tuple[Tensor, Tensor | None]]
"""Values `(batch, L, *)` captured pass by pass, each with a mask `(batch, L)` where some are padding."""


@dataclass(frozen=True)
class Extent:
    """How much was captured, which says how sums are thinned: the same on all processes that add theirs up.

    `positions` count padding too; `shortest` is the length, without padding, of the shortest sequence that has any.
    """

    positions: int = 0
    shortest: int = 0

    @classmethod
    def of(cls, passes: Passes) -> Extent:
        """The extent of these values `(batch, L, *)` and masks `(batch, L)`."""
        lengths = [
            torch.full(values.shape[:1], values.shape[1]) if mask is None else mask.bool().sum(1).cpu()
            for values, mask in passes
        ]
        long = [length for length in torch.cat(lengths).tolist() if length] if lengths else []
        return cls(sum(values.shape[0] * values.shape[1] for values, _ in passes), min(long, default=0))

    @classmethod
    def joined(cls, extents: Iterable[Extent]) -> Extent:
        """That of several captures together."""
        found = [extent for extent in extents if extent.shortest]
        return cls(sum(e.positions for e in found), min((e.shortest for e in found), default=0))


@dataclass(frozen=True, eq=False)
class MomentSum:
    """A sum of outer products over samples, and the number of samples (more than 0)."""

    total: Tensor
    count: float

    def mean(self) -> Tensor:
        """The mean outer product."""
        return self.total / self.count


def controllability_moments(system: StateSpace, capture: Capture, frame: Frame) -> Tensor | None:
    """The mean over data and time of x x* `(*h, n, n)` for the layer's own inputs; None without captured inputs, or
    where those of a system of a bank all vanish.

    In `Frame.REAL` of a complex system, of xi xi^T with xi = [Re x; Im x], which holds both E[x x*] and E[x x^T].
    Not centred; padded positions are left out.
    """
    if capture.pooled is not None:
        moments = capture.pooled.controllability
    else:
        found = controllability_sum(system, capture, frame, Extent.of(capture.inputs))
        moments = None if found is None else found.mean()
    return moments if moments is None or moments.ndim == 2 or _seen(moments) else None


def observability_moments(system: StateSpace, capture: Capture, frame: Frame) -> Tensor | None:
    """The mean of p p* for the costate p_k = A* p_{k+1} + C* g_k, g the loss's gradient at the output.

    This is the observability Gramian that weights the outputs by what the loss sees of them (a Gauss-Newton matrix from
    the gradients of training itself). Padded positions are left out. None without captured gradients, or where they
    all vanish at a system.
    """
    if capture.pooled is not None:
        moments = capture.pooled.observability
    else:
        found = observability_sum(system, capture, frame, Extent.of(capture.gradients))
        moments = None if found is None else found.mean()
    return moments if moments is not None and _seen(moments) else None


def _seen(moments: Tensor) -> bool:
    return bool((moments.diagonal(dim1=-2, dim2=-1) != 0).any(-1).all())


def controllability_sum(system: StateSpace, capture: Capture, frame: Frame, extent: Extent) -> MomentSum | None:
    """The sum behind `controllability_moments`, thinned as is due where `extent` was captured in all."""
    return _sum_outer_products(system, capture.inputs, extent, frame)


def observability_sum(system: StateSpace, capture: Capture, frame: Frame, extent: Extent) -> MomentSum | None:
    """The sum behind `observability_moments`, thinned as is due where `extent` was captured in all."""
    passes = ((g.flip(1), None if mask is None else mask.flip(1)) for g, mask in capture.gradients)
    return _sum_outer_products(dual(system), passes, extent, frame)


def output_change(system: StateSpace, reduced: StateSpace, capture: Capture, sequences: int = 16) -> float | None:
    """|y_r - y| / |y| over some captured sequences, D included; None without captured inputs, or where y overflows."""
    if not capture.inputs:
        return None
    u, mask = capture.inputs[-1]
    u = _without_padding(u[:sequences], None if mask is None else mask[:sequences]).cpu()
    keep = None if mask is None else mask[:sequences].cpu().bool().unsqueeze(-1)
    y, y_reduced = _single(system).simulate(u), _single(reduced).simulate(u)
    if keep is not None:
        y, y_reduced = y * keep, y_reduced * keep
    size, change = _norm(y), _norm(y_reduced - y)
    if not isfinite(size + change):
        return None
    return change / size if size > 0 else float(change > 0)


def _sum_outer_products(
    system: StateSpace, passes: Iterable[tuple[Tensor, Tensor | None]], extent: Extent, frame: Frame
) -> MomentSum | None:
    passes = [(_without_padding(values, mask), mask) for values, mask in passes]
    # States are simulated in single precision: at size 1, so that their squares neither overflow nor vanish.
    size = _largest(values for values, _ in passes), _largest([system.b])
    system = replace(system, b=system.b / size[1])
    if not 1 / _NEAR_ONE <= size[0] <= _NEAR_ONE:
        passes = [(values / size[0], mask) for values, mask in passes]
    else:
        size = 1.0, size[1]
    samples = min(max(_SAMPLES * frame_states(system, frame), _LEAST_SAMPLES), _MOST_SAMPLES)
    stride = max(1, -(-extent.positions // samples))
    last = _steps_summed(system, frame, stride)
    if last < stride:  # a block longer than a sequence would look at the sequence's end alone
        stride = max(last, min(stride, extent.shortest // _SPREAD))
    joint: Tensor | None = None
    edges: list[Tensor] = []
    count = 0.0
    for u, mask in passes:
        for block in state_blocks(system, u, mask, stride, last):
            whole = (block.counted | block.still).all(-1)
            z = _interleaved(block.states, frame)
            z = torch.cat([z, block.inputs.flatten(-2)], -1) if last > 1 else z
            outer = _outer(z if bool(whole.all()) else z[..., whole, :])
            joint = outer if joint is None else joint.add_(outer)
            edge = block.counted.any(-1) & ~whole
            if bool(edge.any()):
                edges.append(_step_by_step(system, block, edge, frame))
            count += float(block.counted.sum())
    if joint is None or count == 0:
        return None
    joint = _parts_apart(joint.cpu(), system, frame)
    total = joint if last == 1 else JointMoments.of(joint, system, frame).of_states_to_come(system, last - 1)
    for edge_sum in edges:
        total += edge_sum.cpu()
    scale = size[0] * size[1]
    return MomentSum(total.mul_(scale).mul_(scale), count)


def _steps_summed(system: StateSpace, frame: Frame, stride: int) -> int:
    """After how many of `stride` steps the states are averaged: all, unless the moments or the inputs are large."""
    n = frame_states(system, frame)
    moments = n * n * system.batch_shape.numel()
    return max(1, min(stride, n // max(1, system.inputs), _SUMMED // max(1, moments)))


def _step_by_step(system: StateSpace, block: Blocks, rows: Tensor, frame: Frame) -> Tensor:
    """The sum over the counted steps of the `rows` where not all are."""
    x, u, counted = block.states[..., rows, :], block.inputs[..., rows, :, :], block.counted[rows]
    leap = Leap(system, 1, x.device)
    total = _outer(_coordinates(x, frame)[..., counted[:, 0], :])
    for j in range(u.shape[-2]):
        x = leap.move(x, leap.drive(u[..., j : j + 1, :].unsqueeze(-4)).squeeze(-3))
        total = total + _outer(_coordinates(x, frame)[..., counted[:, j + 1], :])
    return total


def _outer(x: Tensor) -> Tensor:
    """The sum of x x* over samples: products of a block in the precision of x, given in double for adding blocks up.

    Only what is on and right of the diagonal is multiplied, in as many blocks of rows as are worth it.
    """
    size, other = x.shape[-1], x.conj()
    each = -(-size // max(1, min(_BLOCKS, size // _LEAST_BLOCK)))
    total = x.new_empty(*x.shape[:-2], size, size, dtype=torch.complex128 if x.is_complex() else torch.float64)
    for start in range(0, size, max(1, each)):
        stop = min(start + each, size)
        total[..., start:stop, start:] = x[..., start:stop].mT @ other[..., start:]
        total[..., stop:, start:stop] = total[..., start:stop, stop:].mH
    return total


def _norm(y: Tensor) -> float:
    """The 2-norm of all entries, real or complex, in double precision."""
    return float(torch.linalg.vector_norm((torch.view_as_real(y) if y.is_complex() else y).double()))


def _without_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    values = single(values.detach())
    return values if mask is None else values.masked_fill(~mask.bool().unsqueeze(-1), 0)


def _largest(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value, 1 where there is none."""
    return max((float(_extreme(t)) for t in tensors if t.numel()), default=0.0) or 1.0


def _extreme(t: Tensor) -> Tensor:
    if t.is_complex():
        return t.abs().max()
    least, most = t.aminmax()  # without a copy
    return torch.maximum(-least, most)


def _coordinates(states: Tensor, frame: Frame) -> Tensor:
    if frame is Frame.REAL and states.is_complex():
        return torch.cat([states.real, states.imag], -1)
    return states


def _interleaved(states: Tensor, frame: Frame) -> Tensor:
    """As `_coordinates`, without a copy: real and imaginary part of each state side by side."""
    return torch.view_as_real(states).flatten(-2) if frame is Frame.REAL and states.is_complex() else states


def _parts_apart(moments: Tensor, system: StateSpace, frame: Frame) -> Tensor:
    """Moments of `_interleaved` states, and what follows them, as those of `_coordinates`."""
    if frame is not Frame.REAL or not system.is_complex:
        return moments
    n, size = system.order, moments.shape[-1]
    if size == 2 * n:
        apart = moments.unflatten(-1, (n, 2)).unflatten(-3, (n, 2)).transpose(-4, -3).transpose(-2, -1)
        return apart.flatten(-2).flatten(-3, -2)
    order = torch.cat([torch.arange(0, 2 * n, 2), torch.arange(1, 2 * n, 2), torch.arange(2 * n, size)])
    return moments[..., order, :][..., order]


def _single(system: StateSpace) -> StateSpace:
    """The system in single precision, without the logarithms that only analysis needs."""
    return StateSpace(
        single(system.a),
        single(system.b),
        single(system.c),
        None if system.d is None else single(system.d),
        system.sampling_time,
        system.output,
    )
