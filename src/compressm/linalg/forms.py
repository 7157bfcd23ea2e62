"""Forms of one system: the real system behind a complex one, diagonal form, and changes of time."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.elementary import complex_expm1
from compressm.linalg.statespace import StateSpace


class Frame(Enum):
    """The coordinates in which a system is balanced."""

    REAL = "real"  # xi = [Re x; Im x], the real system behind y = Re(C x): order 2n
    COMPLEX = "complex"  # x itself, as the paper does: order n


def frame_states(system: StateSpace, frame: Frame) -> int:
    """The number of states of `system` in `frame`."""
    return 2 * system.order if frame is Frame.REAL and system.is_complex else system.order


def states_per_slot(system: StateSpace, frame: Frame) -> int:
    """How many balanced states one stored state of a layer with this system holds."""
    return 2 if frame is Frame.REAL and system.is_complex else 1


def realify(system: StateSpace) -> StateSpace:
    """The real dense system of order 2n with states [Re x; Im x] and the output Re(C x) + D u.

    A real system is returned as it is (made dense).
    """
    if system.output != "real":
        raise InvalidSystemError("realify is for systems with a real output; this one has output='complex'.")
    a = torch.diag_embed(system.a) if system.is_diagonal else system.a
    if not system.is_complex:
        return replace(system, a=a, log_a=None)
    a = a if a.is_complex() else torch.complex(a, torch.zeros_like(a))
    top, bottom = torch.cat([a.real, -a.imag], -1), torch.cat([a.imag, a.real], -1)
    b, c = real_ports(system)
    return replace(system, a=torch.cat([top, bottom], -2), b=b, c=c, log_a=None)


def real_ports(system: StateSpace) -> tuple[Tensor, Tensor]:
    """B and C of the real system behind one with real output: as they are, or for the states [Re x; Im x]."""
    if not system.is_complex:
        return system.b, system.c
    b, c = (t if t.is_complex() else torch.complex(t, torch.zeros_like(t)) for t in (system.b, system.c))
    return torch.cat([b.real, b.imag], -2), torch.cat([c.real, -c.imag], -1)


def mirrored(system: StateSpace) -> StateSpace:
    """The complex diagonal system of order 2n with the states [x; conj x] whose own output is Re(C x) + D u.

    A complex system with real output in this form is as large as `realify` makes it, but still diagonal.
    """
    if not system.is_diagonal or system.output != "real":
        raise InvalidSystemError("mirrored is for diagonal systems with a real output.")
    a, b, c = (t if t.is_complex() else torch.complex(t, torch.zeros_like(t)) for t in (system.a, system.b, system.c))
    return replace(
        system,
        a=torch.cat([a, a.conj()], -1),
        b=torch.cat([b, b.conj()], -2),
        c=torch.cat([c, c.conj()], -1) / 2,
        output="complex",
        log_a=None if system.log_a is None else torch.cat([system.log_a, system.log_a.conj()], -1),
    )


def in_frame(system: StateSpace, frame: Frame) -> StateSpace:
    """The dense system whose states are those of `frame`."""
    if frame is Frame.REAL and system.output == "real":
        return realify(system)
    if frame is Frame.REAL and not system.is_complex:
        return replace(system, a=torch.diag_embed(system.a) if system.is_diagonal else system.a, log_a=None)
    if frame is Frame.REAL:
        raise InvalidSystemError("A system with output='complex' has no real frame; balance it with Frame.COMPLEX.")
    return replace(system, a=torch.diag_embed(system.a) if system.is_diagonal else system.a, log_a=None)


def similarity(system: StateSpace, transform: Tensor) -> StateSpace:
    """The same input-output map in the states T^{-1} x: (T^{-1} A T, T^{-1} B, C T, D), dense."""
    a = torch.diag_embed(system.a) if system.is_diagonal else system.a
    dtype = torch.promote_types(transform.dtype, torch.promote_types(a.dtype, system.b.dtype))
    t = transform.to(dtype)
    return replace(
        system,
        a=torch.linalg.solve(t, a.to(dtype) @ t),
        b=torch.linalg.solve(t, system.b.to(dtype)),
        c=system.c.to(dtype) @ t,
        log_a=None,
    )


def strictly_causal(system: StateSpace) -> StateSpace:
    """(A, B, C A, D + C B): the textbook convention y_k = C' x_{k-1} + D' u_k of the same discrete system."""
    if not system.is_discrete:
        raise InvalidSystemError("The strictly causal form is of a discrete system; discretize it first.")
    with_a, with_b = (torch.promote_types(system.c.dtype, t.dtype) for t in (system.a, system.b))
    c = system.c * system.a.unsqueeze(-2) if system.is_diagonal else system.c.to(with_a) @ system.a.to(with_a)
    feed = system.c.to(with_b) @ system.b.to(with_b)
    feed = feed.real if system.output == "real" and feed.is_complex() else feed
    return replace(system, c=c, d=feed if system.d is None else feed + system.d.to(feed.dtype))


class Discretization(Enum):
    """How a continuous system becomes a discrete one."""

    ZOH = "zoh"  # input held over the step
    BILINEAR = "bilinear"  # trapezoidal rule


def discretize(system: StateSpace, step: float, method: Discretization) -> StateSpace:
    """The discrete system x_k = Abar x_{k-1} + Bbar u_k, y_k = C x_k + D u_k, of a continuous one.

    Zero-order hold: Abar = e^{A dt}, Bbar = A^{-1}(Abar - I) B. Bilinear: Abar = (I - A dt/2)^{-1}(I + A dt/2),
    Bbar = (I - A dt/2)^{-1} dt B. C and D stay, as state space layers have it.
    """
    if system.is_discrete:
        raise InvalidSystemError("discretize wants a continuous system (sampling_time 0).")
    if step <= 0:
        raise InvalidSystemError(f"The step is {step}; wanted a positive time.")
    a, b = system.a, system.b
    if system.is_diagonal:
        if method is Discretization.ZOH:
            gain = (_phi(a * step) * step).unsqueeze(-1)
            return replace(system, a=torch.exp(a * step), b=gain * b, sampling_time=step, log_a=None)
        inverse = 1 / (1 - a * step / 2)
        return replace(
            system, a=inverse * (1 + a * step / 2), b=(inverse * step).unsqueeze(-1) * b, sampling_time=step, log_a=None
        )
    n = system.order
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    if method is Discretization.ZOH:
        dtype = torch.promote_types(a.dtype, b.dtype)
        block = a.new_zeros(*a.shape[:-2], n + system.inputs, n + system.inputs, dtype=dtype)
        block[..., :n, :n], block[..., :n, n:] = a * step, b * step
        power = torch.linalg.matrix_exp(block)
        return replace(system, a=power[..., :n, :n], b=power[..., :n, n:], sampling_time=step)
    left = eye - a * (step / 2)
    return replace(
        system,
        a=torch.linalg.solve(left, eye + a * (step / 2)),
        b=torch.linalg.solve(left, b.to(left.dtype) * step),
        sampling_time=step,
    )


def to_continuous(system: StateSpace, method: Discretization) -> StateSpace:
    """The continuous system that `discretize` turns into this one with its sampling time."""
    if not system.is_discrete:
        raise InvalidSystemError("to_continuous wants a discrete system.")
    if not system.is_diagonal:
        raise InvalidSystemError("to_continuous is for diagonal systems; diagonalize first.")
    step, a = system.sampling_time, system.a if system.a.is_complex() else system.a + 0j
    if bool((a == 0).any()):
        raise InvalidSystemError("A pole at 0 has no continuous counterpart; drop it or keep the system discrete.")
    if method is Discretization.ZOH:
        pole = torch.log(a) / step
        gain = _phi(pole * step) * step
    else:
        pole = 2 / step * (a - 1) / (a + 1)
        gain = step / (1 - pole * step / 2)
    return replace(system, a=pole, b=system.b / gain.unsqueeze(-1), sampling_time=0.0, log_a=None)


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1) / z, accurate near 0."""
    safe = torch.where(z == 0, torch.ones_like(z), z)
    return torch.where(z == 0, torch.ones_like(z), complex_expm1(safe) / safe)
