"""A reduction fitted to the inputs that were captured at its layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compressm.adapters.calibration import Capture
from compressm.adapters.sequences import padded, taken
from compressm.linalg.statespace import StateSpace
from compressm.reduction.fitting import Fitted, NotFitted, Samples, fit, least_positions
from compressm.reduction.result import Reduction

_POSITIONS = 25_000  # looked at, at most,
_FULL_WORK = 1_500_000_000  # and so many products to simulate the full system,
_STATES = 600_000  # and so many numbers in the states of the reduced one; more only where a fit needs them,
_MOST_STATES = 10_000_000  # and then so many,
_MOST_FULL_WORK = 4_000_000_000  # so many products to simulate,
_MOST_FIT_WORK = 4_000_000_000  # and so many products in one of the normal equations
_NOISE = 0.1  # added to the captured inputs, against their size


def fitted_reduction(full: StateSpace, reduction: Reduction, capture: Capture) -> tuple[Reduction, Fitted | NotFitted]:
    """The reduction of the system `full` with poles and output weights fitted to what was captured (see `fit`).

    The newest sequences are taken, with some noise, every other one to fit and the rest to check. The reduction is
    returned as it is, with the reason, where the fit changes nothing: fewer than two sequences were captured, say.
    """
    small = reduction.system
    if not full.is_stable() or not small.is_stable():
        return reduction, NotFitted("it is not stable")
    positions = positions_to_fit(full, small, max((u.shape[1] for u, _ in capture.newest()), default=0))
    if positions == 0:
        return reduction, NotFitted(f"{small.order} states of {full.order} would take too long")
    samples = _samples(full, capture, positions)
    if isinstance(samples, NotFitted):
        return reduction, samples
    limit = torch.maximum(full.spectral_radius(), small.spectral_radius()).clamp_max(1 - 2**-53)
    found = fit(small, samples[::2], samples[1::2], limit)
    if isinstance(found, NotFitted):
        return reduction, found
    return replace(reduction, system=found.system, change=found.change), found


def most_positions(full: StateSpace) -> int:
    """How many positions a fit to the system `full` looks at, at most, whatever order it is cut to."""
    return min(_POSITIONS, _MOST_FULL_WORK // _work(full))


def positions_to_fit(full: StateSpace, small: StateSpace, longest: int) -> int:
    """How many positions are looked at: few enough to be quick, else as many as are needed; 0 where that is too much.

    The needed ones leave room for what whole sequences do not fill.
    """
    systems, real = max(1, full.batch_shape.numel()), small.order * (2 if small.is_complex else 1)
    quick = min(_POSITIONS, _FULL_WORK // _work(full), _STATES // (systems * max(1, small.order)))
    needed = 2 * least_positions(small)
    needed += 2 * min(longest, needed // 2)
    if quick >= needed:
        return quick
    numbers = systems * needed * small.order
    much = needed > most_positions(full) or numbers > _MOST_STATES or systems * needed * real**2 > _MOST_FIT_WORK
    return 0 if much else needed


def _work(full: StateSpace) -> int:
    """Products for each position that is simulated."""
    weights = full.order * (full.inputs + full.outputs + (0 if full.is_diagonal else full.order))
    return max(1, full.batch_shape.numel() * weights)


def _samples(full: StateSpace, capture: Capture, positions: int) -> Samples | NotFitted:
    """The beginnings of the newest sequences, at least two, with the full system's output."""
    passes = capture.newest()
    counts, length = taken([(u.shape[0], u.shape[1]) for u, _ in passes], positions)
    if not any(counts):
        return NotFitted("no inputs were captured")
    chosen = zip(passes, counts, strict=True)
    u, data = padded(
        [(u[:n].detach().cpu().float(), None if m is None else m[:n]) for (u, m), n in chosen if n], length
    )
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
