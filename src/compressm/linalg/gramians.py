"""Controllability and observability Gramians as factors, in the frame in which a system is balanced."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.checks import require_integer, require_kind
from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame, in_frame, mirrored
from compressm.linalg.kautz import kautz_factor, kautz_factors, takenaka_factor
from compressm.linalg.lyapunov import (
    cascade_factor,
    cayley,
    cholesky_factor,
    compress_columns,
    pole_differences,
    stein_factor,
    stein_gaps,
)
from compressm.linalg.parallel import decompose
from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class GramianFactors:
    """Factors of the Gramians, P = Lp Lp* and Q = Lq Lq*, `(*h, k, *)` for the k states of `frame`."""

    controllability: Tensor
    observability: Tensor
    frame: Frame

    def __getitem__(self, index: Tensor) -> GramianFactors:
        """The factors of some systems of a bank."""
        return replace(self, controllability=self.controllability[index], observability=self.observability[index])


def gramian_factors(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> GramianFactors:
    """The factors of the Gramians of a system under white input, in double precision on the CPU.

    Discrete: A P A* - P + B B* = 0 and A* Q A - Q + C* C = 0. Continuous: A P + P A* + B B* = 0 and
    A* Q + Q A + C* C = 0. With a `horizon` of L steps (discrete only) the sums stop there: P_L = P - A^L P A*^L.
    For `Frame.REAL` and a complex system with real output they are the Gramians of the real system in [Re x; Im x].

    Raises UnstableSystemError without a horizon where a pole is not strictly stable.
    """
    require_kind("system", system, StateSpace, error=InvalidSystemError)
    require_kind("frame", frame, Frame)
    if horizon is not None:
        require_integer("horizon", horizon, 1)
    system = system.to_double()
    if horizon is None:
        system.require_stable()
    elif not system.is_discrete:
        raise InvalidSystemError("A finite horizon counts steps of a discrete system; discretize it first.")
    return white_factors(system, frame, horizon)


def white_factors(system: StateSpace, frame: Frame, horizon: int | None = None) -> GramianFactors:
    """Both factors of a double precision system that is stable (or has a horizon), square."""
    if system.outputs == 1 and system.order and _has_closed_form(system, horizon) and _needs_real_frame(system, frame):
        a, b, c = (t.to(torch.complex128) for t in (system.a, system.b[..., 0], system.c[..., 0, :]))
        log_a = None if system.log_a is None else system.log_a.to(torch.complex128)
        return GramianFactors(*kautz_factors(a, b, c, log_a), frame)
    p, q = (controllability_factor(s, frame, horizon) for s in (system, dual(system)))
    return GramianFactors(p, q, frame)


def controllability_gramian(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> Tensor:
    """P, the controllability Gramian (see `gramian_factors`)."""
    return _product(gramian_factors(system, frame, horizon).controllability)


def observability_gramian(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> Tensor:
    """Q, the observability Gramian (see `gramian_factors`)."""
    return _product(gramian_factors(system, frame, horizon).observability)


def _product(factor: Tensor) -> Tensor:
    """L L*, Hermitian to the last bit."""
    gramian = factor @ factor.mH
    return (gramian + gramian.mH) / 2


def dual(system: StateSpace) -> StateSpace:
    """(A*, C*, B*, D*): its controllability Gramian is this system's observability Gramian, in either frame."""
    a = system.a.conj().resolve_conj() if system.is_diagonal else system.a.mH.resolve_conj()
    return replace(
        system,
        a=a,
        b=system.c.mH.resolve_conj(),
        c=system.b.mH.resolve_conj(),
        d=None if system.d is None else system.d.mH.resolve_conj(),
        log_a=None if system.log_a is None else system.log_a.conj().resolve_conj(),
    )


def controllability_factor(system: StateSpace, frame: Frame, horizon: int | None = None) -> Tensor:
    """Lp with P = Lp Lp* for a double precision system that is stable (or has a horizon), square."""
    factor = _factor(system, frame, horizon)
    missing = factor.shape[-2] - factor.shape[-1]
    return torch.cat([factor, factor.new_zeros(*factor.shape[:-1], missing)], -1) if missing > 0 else factor


def _factor(system: StateSpace, frame: Frame, horizon: int | None) -> Tensor:
    if system.order == 0:
        return system.b.new_zeros(*system.b.shape[:-1], 0)
    real = _needs_real_frame(system, frame)
    if not system.is_diagonal:
        dense = in_frame(system, frame)
        a, b = (dense.a, dense.b) if dense.is_discrete else cayley(dense.a, dense.b)
        return stein_factor(a, b, horizon)
    if _has_closed_form(system, horizon):
        return _single_input_factor(system, real)
    system = mirrored(system) if real else system
    a, b, log_a = system.a, system.b, system.log_a
    if horizon is not None:
        factor = stein_factor(a, b, horizon)
        return _real_factor(factor) if real else factor
    gaps = stein_gaps(a, log_a) if system.is_discrete else -(a.unsqueeze(-1) + a.unsqueeze(-2).conj())
    return _diagonal_factor(a, b, log_a, gaps, real)


def _needs_real_frame(system: StateSpace, frame: Frame) -> bool:
    """Whether the states are those of the real system behind a complex one."""
    real = frame is Frame.REAL and system.is_complex
    if real and system.output != "real":
        raise InvalidSystemError("A system with output='complex' has no real frame; balance it with Frame.COMPLEX.")
    return real


def _has_closed_form(system: StateSpace, horizon: int | None) -> bool:
    """Whether the factor is one of the rational bases of `kautz`."""
    return system.is_diagonal and system.inputs == 1 and horizon is None and system.is_discrete


def moment_factor(moments: Tensor) -> Tensor:
    """A factor of a positive semi-definite matrix of second moments measured from data.

    The matrix is scaled to a unit diagonal. The factor is Cholesky's; where round-off makes the matrix indefinite it is
    made of eigenvectors, without what is below zero. Both leave errors of n eps in the scaled matrix. Moments from n
    samples carry a statistical error far above the half of the digits that this gives up.
    """
    moments = (moments + moments.mH) / 2
    weights = moments.diagonal(dim1=-2, dim2=-1).real.clamp_min(0).sqrt()
    safe = torch.where(weights > 0, weights, torch.ones_like(weights))
    scaled = (moments / safe.unsqueeze(-1)).div_(safe.unsqueeze(-2))
    factor, info = torch.linalg.cholesky_ex(scaled)
    indefinite = info != 0
    if bool(indefinite.any()):
        factor = factor.masked_scatter(indefinite[..., None, None], _semidefinite_factor(scaled[indefinite]))
    return weights.unsqueeze(-1) * factor


def _semidefinite_factor(scaled: Tensor) -> Tensor:
    values, vectors = decompose(torch.linalg.eigh, scaled)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)


def _single_input_factor(system: StateSpace, real: bool) -> Tensor:
    log_a = None if system.log_a is None else system.log_a.to(torch.complex128)
    a, b = system.a.to(torch.complex128), system.b[..., 0].to(torch.complex128)
    if real:
        factor = kautz_factor(a, b, log_a)
        return torch.cat([factor.real, factor.imag], -2)
    factor = takenaka_factor(a, b, log_a)
    return factor if system.is_complex else factor.real


def _diagonal_factor(a: Tensor, b: Tensor, log_a: Tensor | None, gaps: Tensor, real: bool) -> Tensor:
    n = a.shape[-1]
    if real:  # try the real Gramian in [Re x; Im x] first: half the memory, a quarter of the work
        gram = (b @ b.mH) / gaps
        plain, mirrored = gram[..., : n // 2, : n // 2], gram[..., : n // 2, n // 2 :]
        cross = (mirrored - plain).imag / 2
        upper = torch.cat([(plain + mirrored).real / 2, cross], -1)
        lower = torch.cat([cross.mT, (plain - mirrored).real / 2], -1)
        factor, sound = cholesky_factor(torch.cat([upper, lower], -2))
    else:
        factor, sound = cholesky_factor((b @ b.mH) / gaps)
    if bool(sound.all()):
        return factor
    differences = pole_differences(a, log_a)
    if not bool(sound.any()):
        slow = cascade_factor(gaps, differences, b)
        return _real_factor(slow) if real else slow
    slow = cascade_factor(gaps[~sound], differences[~sound], b[~sound])
    slow = _real_factor(slow) if real else slow
    return torch.index_put(factor.to(slow.dtype), (~sound,), slow)


def _real_factor(doubled: Tensor) -> Tensor:
    """A real factor in [Re x; Im x] from a complex one in [x; conj x], whose product is real there."""
    n = doubled.shape[-2] // 2
    x, mirrored = doubled[..., :n, :], doubled[..., n:, :]
    factor = torch.cat([(x + mirrored) / 2, (x - mirrored) / 2j], dim=-2)
    return compress_columns(torch.cat([factor.real, factor.imag], dim=-1))
