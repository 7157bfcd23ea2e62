"""A reduction fitted to the inputs that were captured at its layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from compressm.adapters.calibration import Capture
from compressm.linalg.statespace import StateSpace
from compressm.reduction.fitting import Fitted, NotFitted, Samples, fit, least_positions
from compressm.reduction.result import Reduction

_POSITIONS = 25_000  # looked at, at most,
_FULL_WORK = 1_500_000_000  # and so many products to simulate the full system,
_STATES = 600_000  # and so many numbers in the states of the reduced one
_NOISE = 0.1  # added to the captured inputs, against their size


def fitted_reduction(full: StateSpace, reduction: Reduction, capture: Capture) -> tuple[Reduction, Fitted | NotFitted]:
    """The reduction of the system `full` with poles and output weights fitted to what was captured (see `fit`).

    The newest sequences are taken, with some noise, every other one to fit and the rest to check. The reduction is
    returned as it is, with the reason, where the fit changes nothing: fewer than two sequences were captured, say.
    """
    small = reduction.system
    if small.output != "real":
        return reduction, NotFitted("its output is complex")
    if not full.is_stable() or not small.is_stable():
        return reduction, NotFitted("it is not stable")
    positions, needed = _positions(full, small), 2 * least_positions(small)
    if positions < needed:
        return reduction, NotFitted(f"{small.order} states need {needed} positions, more than can be looked at")
    samples = _samples(full, capture, positions)
    if isinstance(samples, NotFitted):
        return reduction, samples
    limit = torch.maximum(full.spectral_radius(), small.spectral_radius()).clamp_max(1 - 2**-53)
    found = fit(small, samples[::2], samples[1::2], limit)
    if isinstance(found, NotFitted):
        return reduction, found
    return replace(reduction, system=found.system, change=found.change), found


def _positions(full: StateSpace, small: StateSpace) -> int:
    systems = max(1, full.batch_shape.numel())
    weights = full.order * (full.inputs + full.outputs + (0 if full.is_diagonal else full.order))
    return min(_POSITIONS, _FULL_WORK // (systems * weights), _STATES // (systems * max(1, small.order)))


def _samples(full: StateSpace, capture: Capture, positions: int) -> Samples | NotFitted:
    """The beginnings of the newest sequences, at least two, with the full system's output."""
    passes = [(u, mask) for u, mask in reversed(capture.inputs) if u.numel()]
    longest = max((u.shape[1] for u, _ in passes), default=0)
    length = min(longest, positions // 2)
    if length == 0:
        return NotFitted("no inputs were captured")
    wanted, inputs, masks = positions // length, list[Tensor](), list[Tensor]()
    for u, mask in passes:
        u = u[: max(wanted, 0), :length].detach().cpu().float()
        data = torch.ones(u.shape[:2], dtype=torch.bool) if mask is None else mask[: len(u), :length].cpu().bool()
        missing = length - u.shape[1]
        inputs.append(pad(u.masked_fill(~data.unsqueeze(-1), 0), (0, 0, 0, missing)))
        masks.append(pad(data, (0, missing)))
        wanted -= len(u)
    u, data = torch.cat(inputs), torch.cat(masks)
    if len(u) < 2:
        return NotFitted("only one sequence was captured")
    u = _shaken(u, data)
    y = _single(full).simulate(u)
    if not bool(torch.isfinite(y).all()):
        return NotFitted("its output on the captured inputs is not finite")
    return Samples(u, y.masked_fill(~data.unsqueeze(-1), 0), data)


def _shaken(u: Tensor, data: Tensor) -> Tensor:
    """u with white noise and a constant offset added to each sequence, from a fixed seed, in proportion to each input.

    Without them nothing binds the fit where the captured inputs do not reach, and what it gains there is lost as soon
    as inputs change a little (statistics of a normalisation in evaluation, say).
    """
    generator = torch.Generator().manual_seed(0)
    size = (u.square().sum((0, 1)) / data.sum().clamp_min(1)).sqrt()
    noise = torch.randn(u.shape, generator=generator) + torch.randn(u[:, :1].shape, generator=generator)
    return u + _NOISE * size * noise.masked_fill(~data.unsqueeze(-1), 0)


def _single(system: StateSpace) -> StateSpace:
    """The system in single precision, without D."""
    kinds = {torch.complex128: torch.complex64, torch.float64: torch.float32}
    a, b, c = (t.to(kinds.get(t.dtype, t.dtype)) for t in (system.a, system.b, system.c))
    return replace(system, a=a, b=b, c=c, d=None, log_a=None)
