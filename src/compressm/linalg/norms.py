"""Sizes of systems and of the error between two of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.gramians import controllability_factor
from compressm.linalg.statespace import StateSpace

_DIRECT_CHANNELS = 16  # below this many channels a batched SVD is cheaper than a power iteration


def error_bound(values: Tensor, order: int) -> float:
    """2 * (sum of the Hankel singular values after the first `order`): |G - G_r|_inf is at most this (Enns 1984).

    Holds for balanced truncation and singular perturbation with white-input infinite-horizon Gramians.
    """
    return 2 * float(values[..., order:].sum(-1).max())


def difference(first: StateSpace, second: StateSpace) -> StateSpace:
    """The system G1 - G2 in double precision, of order n1 + n2; diagonal where both are."""
    first, second = first.to_double(), second.to_double()
    if (first.sampling_time > 0) != (second.sampling_time > 0) or first.output != second.output:
        raise InvalidSystemError("The two systems differ in their kind of time or output.")
    dtype = torch.complex128 if first.is_complex or second.is_complex else torch.float64
    b = torch.cat([first.b.to(dtype), second.b.to(dtype)], -2)
    c = torch.cat([first.c.to(dtype), -second.c.to(dtype)], -1)
    zero = torch.zeros(*b.shape[:-2], first.outputs, first.inputs, dtype=torch.float64)
    d = (zero if first.d is None else first.d) - (zero if second.d is None else second.d)
    if first.is_diagonal and second.is_diagonal:
        a = torch.cat([first.a.to(dtype), second.a.to(dtype)], -1)
        logs = [_log(s).to(torch.complex128) for s in (first, second)]
        log_a = torch.cat(logs, -1) if first.log_a is not None or second.log_a is not None else None
        return replace(first, a=a, b=b, c=c, d=d, log_a=log_a)
    one, two = (torch.diag_embed(s.a) if s.is_diagonal else s.a for s in (first, second))
    n1, n2 = one.shape[-1], two.shape[-1]
    a = torch.zeros(*b.shape[:-2], n1 + n2, n1 + n2, dtype=dtype)
    a[..., :n1, :n1], a[..., n1:, n1:] = one.to(dtype), two.to(dtype)
    return replace(first, a=a, b=b, c=c, d=d, log_a=None)


def h2_norm(system: StateSpace) -> float:
    """The H2 norm sqrt(sum over l of |h_l|_F^2) of a stable discrete system; the largest over a batch.

    Computed from a factor of the Gramian, |C Lp|_F, so that a small error between two large systems keeps its digits.
    """
    system = system.to_double()
    if not system.is_discrete:
        raise InvalidSystemError("h2_norm is for discrete systems; discretize it first.")
    system.require_stable()
    frame = Frame.REAL if system.output == "real" else Frame.COMPLEX
    dense = in_frame(system, frame)
    factor = controllability_factor(system, frame)
    dtype = torch.promote_types(dense.c.dtype, factor.dtype)
    squared = (dense.c.to(dtype) @ factor.to(dtype)).abs().square().sum((-1, -2))
    if system.d is not None:
        first = dense.c @ dense.b
        squared = squared + (first + dense.d).abs().square().sum((-1, -2)) - first.abs().square().sum((-1, -2))  # type: ignore[operator]
    return float(squared.clamp_min(0).sqrt().max())


def hinf_norm(system: StateSpace, tolerance: float = 1e-8) -> float:
    """The H-infinity norm, the largest singular value of G over all frequencies, of one stable discrete system.

    Bruinsma and Steinbuch (1990): a level is exceeded exactly where a Hamiltonian matrix has imaginary eigenvalues; the
    discrete system is mapped to continuous time by the bilinear transform, which keeps the norm. Relative accuracy
    `tolerance`. Cost: a few eigenvalue problems of twice the (real) order.
    """
    system = system.to_double()
    system.require_stable()
    lower, omega = _peak(system)
    dense = in_frame(system, Frame.REAL if system.output == "real" else Frame.COMPLEX)
    if system.order == 0 or lower == 0:
        return lower
    a, b, c, d = _bilinear(dense)
    for _ in range(60):
        level = lower * (1 + 2 * tolerance)
        crossings = _crossings(a, b, c, d, level)
        if crossings.numel() == 0:
            return level if level < float("inf") else lower
        middle = (crossings[1:] + crossings[:-1]) / 2 if crossings.numel() > 1 else crossings
        best = _gain(system, 2 * torch.atan(middle)).max()
        if float(best) <= lower * (1 + tolerance / 2):
            return max(lower, float(best))
        lower = float(best)
    return lower


def hinf_estimate(system: StateSpace) -> float:
    """A lower estimate of the H-infinity norm: the largest gain found on a refined grid, by power iteration.

    The grid has uniform points, the angles of the poles, and three rounds of refinement about the best points. Never
    above the norm; within a few per cent of it for systems without extremely narrow peaks.
    """
    return _peak(system.to_double())[0]


def _peak(system: StateSpace) -> tuple[float, float]:
    """The largest gain found and its frequency."""
    if system.order == 0:
        return (0.0, 0.0) if system.d is None else (float(torch.linalg.matrix_norm(system.d, ord=2).max()), 0.0)
    poles = (system.a if system.is_diagonal else torch.linalg.eigvals(system.a)).flatten()
    slowest = poles[poles.abs().argsort(descending=True)[:96]]
    uniform = torch.linspace(0, torch.pi, 65, dtype=torch.float64)
    omega = torch.cat([uniform, torch.angle(slowest + 0j)])
    if system.output == "real":
        omega = omega.abs()
    else:
        omega = torch.cat([omega, -uniform])
    omega = omega.unique()
    spacing = torch.pi / 64
    gains = _gain(system, omega)
    for _ in range(3):
        centre = omega[gains.argsort(descending=True)[:4]]
        spacing = spacing / 4
        offsets = torch.linspace(-4, 4, 9, dtype=torch.float64) * spacing
        extra = (centre[:, None] + offsets).flatten()
        omega, gains = torch.cat([omega, extra]), torch.cat([gains, _gain(system, extra)])
    best = int(gains.argmax())
    return float(gains[best]), float(omega[best])


def _gain(system: StateSpace, omega: Tensor) -> Tensor:
    """Lower estimates `(F,)` of the largest singular value of G(e^{iw}); exact for few channels or dense A."""
    narrow = min(system.inputs, system.outputs) <= _DIRECT_CHANNELS
    if narrow or not system.is_diagonal:
        response = system.frequency_response(omega)
        small = response @ response.mH if system.outputs <= system.inputs else response.mH @ response
        return torch.linalg.eigvalsh(small)[..., -1].clamp_min(0).sqrt()
    a, b, c = (t.to(torch.complex128) for t in (system.a, system.b, system.c))
    if system.output == "real" and system.is_complex:
        a, b, c = torch.cat([a, a.conj()]), torch.cat([b, b.conj()]), torch.cat([c, c.conj()], -1) / 2
    d = torch.zeros(c.shape[0], b.shape[1], dtype=a.dtype) if system.d is None else system.d.to(a.dtype)
    resolvent = 1 / (1 - torch.exp(-1j * omega) * a[:, None])  # (n, F)
    phases = torch.arange(b.shape[1], dtype=torch.float64)[:, None] * (1 + omega)  # a fixed, generic start
    v = torch.exp(1j * phases * 2.399963)
    gain = omega.new_zeros(omega.shape)
    for _ in range(6):
        v = v / torch.linalg.vector_norm(v, dim=0).clamp_min(1e-300)
        y = c @ (resolvent * (b @ v)) + d @ v
        gain = torch.linalg.vector_norm(y, dim=0)
        v = b.mH @ (resolvent.conj() * (c.mH @ y)) + d.mH @ y
    return gain


def _bilinear(dense: StateSpace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A continuous system with the same gain at w_c = tan(w / 2), of one dense discrete system, complex."""
    a, b, c = (t.to(torch.complex128) for t in (dense.a, dense.b, dense.c))
    c = c @ a  # textbook convention: the gain of (C, z B) is that of (C A, B) with D + C B
    d = dense.c.to(c.dtype) @ b + (0 if dense.d is None else dense.d.to(c.dtype))
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    inverse = torch.linalg.inv(a + eye)
    root = 2**0.5
    return inverse @ (a - eye), root * (inverse @ b), root * (c @ inverse), d - c @ inverse @ b


def _crossings(a: Tensor, b: Tensor, c: Tensor, d: Tensor, level: float) -> Tensor:
    """Sorted continuous frequencies at which a singular value of G equals `level`."""
    r = torch.linalg.inv(level**2 * torch.eye(d.shape[1], dtype=d.dtype) - d.mH @ d)
    s = torch.eye(d.shape[0], dtype=d.dtype) + d @ r @ d.mH
    core = a + b @ r @ d.mH @ c
    hamiltonian = torch.cat([torch.cat([core, b @ r @ b.mH], 1), torch.cat([-c.mH @ s @ c, -core.mH], 1)], 0)
    values = torch.linalg.eigvals(hamiltonian)
    imaginary = values.real.abs() <= 1e-9 * (values.abs() + torch.linalg.matrix_norm(a) * 1e-3)
    return values.imag[imaginary].sort().values


def _log(system: StateSpace) -> Tensor:
    return torch.log(system.a.to(torch.complex128)) if system.log_a is None else system.log_a
