"""Gramians from data: second moments of a layer's states and costates over captured passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from compressm.adapters.calibration import Capture
from compressm.linalg.forms import Frame, frame_states
from compressm.linalg.gramians import dual
from compressm.linalg.statespace import StateSpace

_SAMPLES = 16  # positions for each real state whose outer products are averaged, evenly spread over time,
_LEAST_SAMPLES, _MOST_SAMPLES = 4_000, 16_000  # within these limits
_CHUNK = 32  # time steps whose states are held at once, at most
_BLOCK = 2**23  # numbers in the states held at once, unless one step has more


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
        found = controllability_sum(system, capture, frame, capture.tokens())
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
        found = observability_sum(system, capture, frame, capture.gradient_tokens())
        moments = None if found is None else found.mean()
    return moments if moments is not None and _seen(moments) else None


def _seen(moments: Tensor) -> bool:
    return bool((moments.diagonal(dim1=-2, dim2=-1) != 0).any(-1).all())


def controllability_sum(system: StateSpace, capture: Capture, frame: Frame, tokens: int) -> MomentSum | None:
    """The sum behind `controllability_moments`, thinned as is due where `tokens` positions were captured in all."""
    return _sum_outer_products(system, capture.inputs, tokens, frame)


def observability_sum(system: StateSpace, capture: Capture, frame: Frame, tokens: int) -> MomentSum | None:
    """The sum behind `observability_moments`, thinned as is due where `tokens` positions were captured in all."""
    passes = ((g.flip(1), None if mask is None else mask.flip(1)) for g, mask in capture.gradients)
    return _sum_outer_products(dual(system), passes, tokens, frame)


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
    size = float(torch.linalg.vector_norm(y.double()))
    change = float(torch.linalg.vector_norm((y_reduced - y).double()))
    if not isfinite(size + change):
        return None
    return change / size if size > 0 else float(change > 0)


def _sum_outer_products(
    system: StateSpace, passes: Iterable[tuple[Tensor, Tensor | None]], tokens: int, frame: Frame
) -> MomentSum | None:
    passes = [(_without_padding(values, mask), mask) for values, mask in passes]
    # States are simulated in single precision: at size 1, so that their squares neither overflow nor vanish.
    size = _largest(values for values, _ in passes), _largest([system.b])
    system = replace(system, b=system.b / size[1])
    passes = [(values / size[0], mask) for values, mask in passes]
    total: Tensor | None = None
    count = 0.0
    samples = min(max(_SAMPLES * frame_states(system, frame), _LEAST_SAMPLES), _MOST_SAMPLES)
    stride = max(1, -(-tokens // samples))
    for u, mask in passes:
        for states, weights in _state_chunks(system, u, mask, stride):
            x = _coordinates(states, frame)
            if weights is not None:
                x = x * weights.to(x.dtype).unsqueeze(-1)
            count += float(x.shape[-2] if weights is None else weights.sum())
            outer = (x.mT @ x.conj()).to(torch.complex128 if x.is_complex() else torch.float64)
            total = outer if total is None else total + outer
    if total is None or count == 0:
        return None
    return MomentSum(total.cpu() * (size[0] * size[1]) ** 2, count)


def _state_chunks(
    system: StateSpace, u: Tensor, mask: Tensor | None, stride: int
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """The states `(*h, samples, n)` at every `stride`-th step, a chunk of time at a time, with 0/1 weights."""
    device = u.device if u.device.type == "cuda" else torch.device("cpu")
    single = torch.complex64 if system.is_complex else torch.float32
    u, mask = u.to(device), None if mask is None else mask.to(device).bool()
    batch, length, _ = u.shape
    h, dims = system.batch_shape, len(system.batch_shape)
    if length == 0:
        return
    at_once = _steps_at_once(system, stride)
    reach, power = (t.to(device, single) for t in _reach(system, at_once))
    u = u.reshape(batch, length, *h, system.inputs).movedim((0, 1), (dims, dims + 1))  # (*h, batch, L, m)
    blocks, every = (length - 1) // at_once + 1, stride // at_once
    u = torch.nn.functional.pad(u, (0, 0, at_once - 1, 0))[..., : blocks * at_once, :]  # block i ends with step i p
    u = u.unflatten(-2, (blocks, at_once)).flatten(-2).movedim(-2, dims)  # (*h, blocks, batch, p m)
    x = torch.zeros(*h, batch, system.order, dtype=single, device=device)
    many = max(1, min(_CHUNK, _BLOCK // max(1, x.numel())))
    for start in range(0, blocks, many):
        part = u[..., start : start + many, :, :].to(single)
        drive = (part.flatten(-3, -2) @ reach).unflatten(-2, part.shape[-3:-1])  # (*h, T, batch, n)
        kept = []
        for k in range(drive.shape[-3]):
            forced = drive[..., k, :, :]
            x = torch.addcmul(forced, x, power) if system.is_diagonal else forced + x @ power
            if (start + k) % every == 0:
                kept.append(((start + k) * at_once, x))
        if kept:
            weights = None if mask is None else torch.cat([mask[:, k] for k, _ in kept])
            yield torch.cat([state for _, state in kept], -2), weights


def _steps_at_once(system: StateSpace, stride: int) -> int:
    """The largest divisor of `stride` whose input weights hold at most `_BLOCK` numbers."""
    room = _BLOCK // max(1, system.b.numel())
    return next(p for p in range(stride, 0, -1) if stride % p == 0 and (p <= room or p == 1))


def _reach(system: StateSpace, steps: int) -> tuple[Tensor, Tensor]:
    """What takes x_k to x_{k+p} = x_k power + (u_{k+1} .. u_{k+p}) reach, for rows x and u and p `steps`.

    reach is (*h, p m, n), the rows of A^{p-1} B, .., A B, B; power is A^p, as (*h, 1, n) for diagonal systems.
    """
    a, columns = (system.a.unsqueeze(-1) if system.is_diagonal else system.a), [system.b]
    for _ in range(steps - 1):
        columns.append(a * columns[-1] if system.is_diagonal else a.to(columns[-1].dtype) @ columns[-1])
    reach = torch.cat(columns[::-1], -1).mT
    return reach, (system.a**steps).unsqueeze(-2) if system.is_diagonal else torch.linalg.matrix_power(a, steps).mT


def _without_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    values = values.detach().float()
    return values if mask is None else values.masked_fill(~mask.bool().unsqueeze(-1), 0)


def _largest(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value, 1 where there is none."""
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0) or 1.0


def _coordinates(states: Tensor, frame: Frame) -> Tensor:
    if frame is Frame.REAL and states.is_complex():
        return torch.cat([states.real, states.imag], -1)
    return states


def _single(system: StateSpace) -> StateSpace:
    """The system in single precision, without the logarithms that only analysis needs."""

    def narrow(t: Tensor) -> Tensor:
        return t.to(torch.complex64 if t.is_complex() else torch.float32)

    return StateSpace(
        narrow(system.a),
        narrow(system.b),
        narrow(system.c),
        None if system.d is None else narrow(system.d),
        system.sampling_time,
        system.output,
    )
