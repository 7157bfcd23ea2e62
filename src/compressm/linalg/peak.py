"""The gain of a discrete system over frequency, and where it is largest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.linalg.elementary import complex_expm1
from compressm.linalg.forms import mirrored, realify
from compressm.linalg.statespace import StateSpace

_DIRECT_CHANNELS = 16  # up to this many channels all singular values are cheaper than a power iteration
_SEARCH_ITERATIONS, _FINAL_ITERATIONS = 3, 30  # of the power method, on the grid and at the best point
_POLES = 64  # whose angles are on the first grid: the slowest
_REFINEMENTS = (3, 3, 3, 1, 1, 1)  # points refined about in each round; each has a quarter of the spacing before
_CHUNK = 2**22  # numbers in one block of frequencies
_CONDITIONING = 1e8  # of the eigenvectors with which a dense system is swept in diagonal form


@dataclass(frozen=True, eq=False)
class _Modal:
    """Complex diagonal matrices with G(e^{iw}) = C diag(1 / (1 - e^{-iw} a)) B + D."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    log_a: Tensor | None

    def resolvent(self, omega: Tensor) -> Tensor:
        """1 / (1 - e^{-iw} a), `(n, F)`."""
        if self.log_a is not None:
            return -1 / complex_expm1(self.log_a[:, None] - 1j * omega)
        return 1 / (1 - torch.exp(-1j * omega) * self.a[:, None])


def peak_gain(system: StateSpace, exact: bool = False) -> tuple[float, float]:
    """The largest gain found on a refined grid of one double precision discrete system, and its frequency.

    The gain is reached at that frequency (or larger there): with more than 16 inputs and outputs it comes from a power
    iteration unless `exact`.
    """
    if system.order == 0:
        return (0.0 if system.d is None or system.d.numel() == 0 else float(_norms(system.d))), 0.0
    if system.inputs == 0 or system.outputs == 0:
        return 0.0, 0.0
    modal = _modal(system)
    poles = torch.linalg.eigvals(system.a) if modal is None else modal.a

    def gain(omega: Tensor) -> Tensor:
        if modal is None:
            return exact_gain(system, omega)
        if exact or min(system.inputs, system.outputs) <= _DIRECT_CHANNELS:
            return _direct_gain(modal, omega)
        return _power_gain(modal, omega, _SEARCH_ITERATIONS)

    omega = _first_grid(poles, symmetric=system.output == "real")
    gains = gain(omega)
    spacing = torch.pi / 64
    for centres in _REFINEMENTS:
        centre = omega[gains.argsort(descending=True)[:centres]]
        spacing = spacing / 4
        offsets = torch.tensor([-3, -2, -1, 1, 2, 3], dtype=torch.float64) * spacing
        extra = (centre[:, None] + offsets).flatten()
        omega, gains = torch.cat([omega, extra]), torch.cat([gains, gain(extra)])
    best = omega[gains.argmax()].reshape(1)
    if exact or modal is None or not system.is_diagonal:  # a diagonal form of a dense system only finds the place
        return float(exact_gain(system, best)[0]), float(best)
    return float(_power_gain(modal, best, _FINAL_ITERATIONS)[0].maximum(gains.max())), float(best)


def exact_gain(system: StateSpace, omega: Tensor) -> Tensor:
    """The largest singular value of G(e^{iw}) for each frequency of `omega` `(F,)`."""
    states = system.order if system.is_diagonal else system.order * system.order // max(system.outputs, 1) + 1
    chunk = max(1, _CHUNK // max(1, states * system.outputs))
    return torch.cat([_norms(system.frequency_response(part)) for part in omega.split(chunk)])


def _first_grid(poles: Tensor, symmetric: bool) -> Tensor:
    slowest = poles[poles.abs().argsort(descending=True)[:_POLES]]
    uniform = torch.linspace(0, torch.pi, 65, dtype=torch.float64)
    omega = torch.cat([uniform, torch.angle(slowest + 0j)])
    return (omega.abs() if symmetric else torch.cat([omega, -uniform])).unique()


def _modal(system: StateSpace) -> _Modal | None:
    """The system in complex diagonal form; None where eigenvectors of a dense one are too ill-conditioned."""
    if system.is_complex and system.output == "real":
        system = mirrored(system) if system.is_diagonal else realify(system)
    log_a = None if system.log_a is None or not bool(torch.isfinite(system.log_a).all()) else system.log_a
    if system.is_diagonal:
        a, b, c = (t.to(torch.complex128) for t in (system.a, system.b, system.c))
    else:
        a, vectors = torch.linalg.eig(system.a.to(torch.complex128))
        if not bool(torch.linalg.cond(vectors) < _CONDITIONING):
            return None
        b, c = torch.linalg.solve(vectors, system.b.to(a.dtype)), system.c.to(a.dtype) @ vectors
    d = torch.zeros(c.shape[0], b.shape[1], dtype=a.dtype) if system.d is None else system.d.to(a.dtype)
    return _Modal(a, b, c, d, log_a)


def _direct_gain(modal: _Modal, omega: Tensor) -> Tensor:
    chunk = max(1, _CHUNK // (modal.c.shape[0] * modal.c.shape[1]))
    parts = []
    for part in omega.split(chunk):
        response = (modal.c * modal.resolvent(part).mT.unsqueeze(-2)) @ modal.b + modal.d
        parts.append(_norms(response))
    return torch.cat(parts)


def _power_gain(modal: _Modal, omega: Tensor, iterations: int) -> Tensor:
    """Lower estimates of the largest singular value, by a fixed number of power iterations at all frequencies."""
    b, c, d, resolvent = modal.b, modal.c, modal.d, modal.resolvent(omega)
    phases = torch.arange(b.shape[1], dtype=torch.float64)[:, None] * (1 + omega)  # a fixed, generic start
    v = torch.exp(1j * phases * 2.399963)
    gain = omega.new_zeros(omega.shape)
    for _ in range(iterations):
        v = v / torch.linalg.vector_norm(v, dim=0).clamp_min(1e-300)
        y = c @ (resolvent * (b @ v)) + d @ v
        gain = torch.linalg.vector_norm(y, dim=0)
        v = b.mH @ (resolvent.conj() * (c.mH @ y)) + d.mH @ y
    return gain


def _norms(response: Tensor) -> Tensor:
    """The largest singular value of each matrix, `(*, p, m)`, from the smaller of its two products."""
    small = response @ response.mH if response.shape[-2] <= response.shape[-1] else response.mH @ response
    return torch.linalg.eigvalsh(small)[..., -1].clamp_min(0).sqrt()
