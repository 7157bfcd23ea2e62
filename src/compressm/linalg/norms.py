"""Sizes of systems and of the error between two of them."""

from __future__ import annotations

import cmath
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.elementary import all_finite, pole_gaps
from compressm.linalg.forms import Frame, in_frame, mirrored, realify
from compressm.linalg.gramians import controllability_factor
from compressm.linalg.kautz import kautz_factor
from compressm.linalg.peak import exact_gain, peak_gain, peak_gains
from compressm.linalg.statespace import StateSpace

_MAX_LEVELS = 60
_BLOCKS, _LEAST_BLOCK = 8, 64  # of rows of a symmetric sum over pairs of poles, and of how many rows at least
_NEAR_CIRCLE = 1e-5  # eigenvalues this near the unit circle are looked at; round-off moves double ones by sqrt(eps)


def error_bound(values: Tensor, order: Tensor | int) -> float:
    """2 * (sum of the Hankel singular values after the first `order`): |G - G_r|_inf is at most this (Enns 1984).

    Holds for balanced truncation and singular perturbation with white-input infinite-horizon Gramians. For a bank,
    `values` `(*h, k)` and `order` `(*h,)` or one number, the largest: a block diagonal G has the norm of its largest
    block.
    """
    beyond = torch.arange(values.shape[-1]) >= torch.as_tensor(order).unsqueeze(-1)
    return 2 * float((values * beyond).sum(-1).max())


def difference(first: StateSpace, second: StateSpace) -> StateSpace:
    """The system G1 - G2 in double precision, of order n1 + n2; diagonal where both are."""
    first, second = first.to_double(), second.to_double()
    if first.is_discrete != second.is_discrete or first.output != second.output:
        raise InvalidSystemError("The two systems differ in their kind of time or output.")
    shapes = [(*s.batch_shape, s.outputs, s.inputs) for s in (first, second)]
    if shapes[0] != shapes[1]:
        raise InvalidSystemError(f"The shapes (*h, p, m) of the two systems differ: {shapes[0]} and {shapes[1]}.")
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

    Computed from a factor of the Gramian, |C Lp|_F without D and (|C A Lp|_F^2 + |C B + D|_F^2)^(1/2) with it, so that
    a small error between two large systems keeps its digits.
    """
    system = _discrete_double(system, "h2_norm")
    system.require_stable()
    quick = _PairTerms.of(system).energy(system) if _has_pairs(system) else None
    return _h2_norm(system) if quick is None else float(quick.sqrt())


def h2_error_and_norm(full: StateSpace, reduced: StateSpace) -> tuple[float, float]:
    """The H2 norms of G - G_r and of G, the same as `h2_norm` gives, with what both need computed once."""
    error = _discrete_double(difference(full, reduced), "h2_error_and_norm")
    full = full.to_double()
    if not _has_pairs(error) or not _has_pairs(full):
        return h2_norm(error), h2_norm(full)
    error.require_stable()
    terms = _PairTerms.of(error)
    found = [(system, terms.energy(system)) for system in (error, full)]
    lost, norm = (_h2_norm(system) if quick is None else float(quick.sqrt()) for system, quick in found)
    return lost, norm


def _h2_norm(system: StateSpace) -> float:
    if system.is_diagonal and system.is_complex and system.inputs == 1 and system.output == "real":
        squared = _single_input_energy(system)
    else:
        squared = _energy(system)
    return float(squared.sqrt().max()) if squared.numel() else 0.0


def _has_pairs(system: StateSpace) -> bool:
    """Whether it is one diagonal complex system with real output."""
    return system.is_diagonal and system.is_complex and system.output == "real" and not system.batch_shape


@dataclass(frozen=True, eq=False)
class _PairTerms:
    """What the pairs of poles add to the squared H2 norm without D `(n, n)`, and the size of what is added up there.

    From the closed form of the Gramian, for a diagonal complex system with real output. Beside some blocks on the
    diagonal a pair is found twice to the right of it and not to the left.
    """

    terms: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, system: StateSpace) -> _PairTerms:
        a, n = system.a.to(torch.complex128), system.order
        known = system.log_a is not None and all_finite(system.log_a)
        log_a = system.log_a.to(torch.complex128) if known and system.log_a is not None else None
        c, b = (system.c.to(torch.complex128), system.b.to(torch.complex128))
        seen, driven = (c.real.contiguous(), c.imag.contiguous()), (b.real.contiguous().mT, b.imag.contiguous().mT)
        terms, sizes = torch.zeros(2, n, n, dtype=torch.float64)
        each = max(_LEAST_BLOCK, -(-n // _BLOCKS))
        for start in range(0, n, each):
            rows, columns = slice(start, start + each), slice(start, None)
            gaps, crossed = (
                pole_gaps(a[rows], turned(a[columns]), None if log_a is None else (log_a[rows], turned(log_a[columns])))
                for turned in (torch.conj_physical, torch.positive)
            )
            (s, mirrored_s), (d, mirrored_d) = (_column_products(x, rows, columns) for x in (seen, driven))
            plain, mixed = (s * d).conj_physical_() / gaps, mirrored_s * mirrored_d / crossed
            size = plain.real.abs() + plain.imag.abs() + mixed.real.abs() + mixed.imag.abs()
            for whole, part in ((terms, (plain.real + mixed.real) / 2), (sizes, size)):
                part[:, each:] *= 2
                whole[rows, columns] = part
        return cls(terms, sizes)

    def energy(self, system: StateSpace) -> Tensor | None:
        """The squared H2 norm of the system of the first poles; None where cancellation would leave fewer than eight
        digits, as in a small error between two large systems.
        """
        n, d = system.order, system.d
        energy, size = self.terms[:n, :n].sum(), self.sizes[:n, :n].sum()
        if d is not None and bool((d != 0).any()):
            met, own = _beside(system, d), d.square().sum()
            energy, size = energy + 2 * met.sum() + own, size + 2 * met.abs().sum() + own
        return energy if bool(energy > 1e8 * n * torch.finfo(torch.float64).eps * size) else None


def _beside(system: StateSpace, d: Tensor) -> Tensor:
    """The products of the entries of D that are not zero with those of Re(C B) in their places, `(k,)`."""
    b, c, (i, j) = system.b.to(torch.complex128), system.c.to(torch.complex128), d.nonzero(as_tuple=True)
    if len(i) > max(d.shape):
        first = c.real @ b.real - c.imag @ b.imag
        return first[i, j] * d[i, j]
    return (c[i] * b.mT[j]).sum(-1).real * d[i, j]


def _column_products(x: tuple[Tensor, Tensor], rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """x* x and x^T x, these rows and columns of them, for real and imaginary parts of x."""
    (re, im), (real, imaginary) = (part[:, rows].mT for part in x), (part[:, columns] for part in x)
    rr, ii, ri, ir = re @ real, im @ imaginary, re @ imaginary, im @ real
    return torch.complex(rr + ii, ri - ir), torch.complex(rr - ii, ri + ir)


def _energy(system: StateSpace) -> Tensor:
    """The squared H2 norms `(*h,)`."""
    if system.output == "real" and system.is_complex:
        system = mirrored(system) if system.is_diagonal else realify(system)
    factor = controllability_factor(system, Frame.COMPLEX)
    dtype = torch.promote_types(torch.promote_types(system.c.dtype, system.a.dtype), factor.dtype)
    a, b, c, factor = (t.to(dtype) for t in (system.a, system.b, system.c, factor))
    if system.d is None:
        return (c @ factor).abs().square().sum((-1, -2))
    later = a.unsqueeze(-1) * factor if system.is_diagonal else a @ factor
    return (c @ later).abs().square().sum((-1, -2)) + (c @ b + system.d).abs().square().sum((-1, -2))


def _single_input_energy(system: StateSpace) -> Tensor:
    """`_energy` of complex diagonal systems with one input and real output, in half the size."""
    a, b, c = (t.to(torch.complex128) for t in (system.a, system.b, system.c))
    factor = kautz_factor(a, b[..., 0], system.log_a)
    if system.d is None:
        return (c @ factor).real.square().sum((-1, -2))
    later = (c * a.unsqueeze(-2)) @ factor
    return later.real.square().sum((-1, -2)) + ((c @ b).real + system.d).square().sum((-1, -2))


def _discrete_double(system: StateSpace, name: str) -> StateSpace:
    if not system.is_discrete:
        raise InvalidSystemError(f"{name} is for discrete systems; discretize it first.")
    return system.to_double()


def hinf_norm(system: StateSpace, tolerance: float = 1e-8) -> float:
    """The H-infinity norm of a stable discrete system, the largest singular value of G over all frequencies.

    Bruinsma and Steinbuch (1990): a level is exceeded exactly where a Hamiltonian matrix has imaginary eigenvalues; the
    discrete system is mapped to continuous time by the bilinear transform, which keeps the norm. Every eigenvalue near
    the axis is a candidate only, judged by the gain itself. The result is a gain that is reached, and the norm is at
    most 1 + 2 `tolerance` times that. Cost: a few eigenvalue problems of twice the (real) order. The largest norm
    over a batch.
    """
    system = _discrete_double(system, "hinf_norm")
    system.require_stable()
    return max((_hinf_norm(s, tolerance) for s in _unbatched(system)), default=0.0)


def hinf_estimate(system: StateSpace) -> float:
    """A lower estimate of the H-infinity norm: the largest gain found on a refined grid, by power iteration.

    The grid has uniform points, the angles of the poles whose own peaks are the highest, and rounds of refinement about
    the best points, down to the width of the narrowest peak. Never above the norm (up to round-off), and within a few
    per cent of it unless a peak was missed. The largest over a batch.
    """
    system = _discrete_double(system, "hinf_estimate")
    if not system.batch_shape:
        return peak_gain(system)[0]
    return float(peak_gains(system).max()) if system.batch_shape.numel() else 0.0


def _hinf_norm(system: StateSpace, tolerance: float) -> float:
    lower, _ = peak_gain(system, exact=True)
    if system.order == 0 or lower == 0:
        return lower
    dense = in_frame(system, Frame.REAL if system.output == "real" else Frame.COMPLEX)
    turn = _free_angle(dense)
    lower = max(lower, float(exact_gain(system, torch.tensor([turn], dtype=torch.float64))[0]))
    a, b, c, d = _bilinear(dense, turn)
    for _ in range(_MAX_LEVELS):
        level = lower * (1 + 2 * tolerance)
        crossings = _crossings(a, b, c, d, level)
        if crossings.numel() == 0:
            return lower
        points = torch.cat([crossings, (crossings[1:] + crossings[:-1]) / 2])
        best = float(exact_gain(system, points + turn + torch.pi).max())
        if best <= level:
            return max(lower, best)
        lower = best
    return lower


def _free_angle(dense: StateSpace) -> float:
    """The point of the unit circle, as an angle, that is farthest from all poles."""
    poles = torch.linalg.eigvals(dense.a)
    angles = torch.linspace(-torch.pi, torch.pi, 129, dtype=torch.float64)
    gap = (torch.exp(1j * angles)[:, None] - poles).abs().amin(-1)
    return float(angles[gap.argmax()])


def _bilinear(dense: StateSpace, turn: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A continuous system with the gain of one dense discrete system: w_c = tan((w - turn - pi) / 2).

    The point e^{i turn} of the circle becomes infinity, so the transform is as well conditioned as that point is far
    from all poles.
    """
    a, b, c = (t.to(torch.complex128) for t in (dense.a, dense.b, dense.c))
    a = -cmath.exp(-1j * turn) * a
    c = c @ a  # textbook convention: the gain of (C, z B) is that of (C A, B) with D + C B
    d = dense.c.to(c.dtype) @ b + (0 if dense.d is None else dense.d.to(c.dtype))
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    inverse = torch.linalg.inv(a + eye)
    root = 2**0.5
    return inverse @ (a - eye), root * (inverse @ b), root * (c @ inverse), d - c @ inverse @ b


def _crossings(a: Tensor, b: Tensor, c: Tensor, d: Tensor, level: float) -> Tensor:
    """Sorted angles 2 atan(w_c) at which a singular value of G may equal `level`."""
    r = torch.linalg.inv(level**2 * torch.eye(d.shape[1], dtype=d.dtype) - d.mH @ d)
    s = torch.eye(d.shape[0], dtype=d.dtype) + d @ r @ d.mH
    core = a + b @ r @ d.mH @ c
    hamiltonian = torch.cat([torch.cat([core, b @ r @ b.mH], 1), torch.cat([-c.mH @ s @ c, -core.mH], 1)], 0)
    values = torch.linalg.eigvals(hamiltonian)
    circle = (1 + values) / (1 - values)
    near = (circle.abs() - 1).abs() <= _NEAR_CIRCLE
    return torch.angle(circle[near]).sort().values


def _unbatched(system: StateSpace) -> Iterator[StateSpace]:
    """The systems of a batch, one by one."""
    count = system.batch_shape.numel()

    def flat(t: Tensor | None) -> list[Tensor] | list[None]:
        if t is None:
            return [None] * count
        return list(t.reshape(count, *t.shape[len(system.batch_shape) :]))

    for a, b, c, d, log_a in zip(*map(flat, (system.a, system.b, system.c, system.d, system.log_a)), strict=True):
        yield replace(system, a=a, b=b, c=c, d=d, log_a=log_a)


def _log(system: StateSpace) -> Tensor:
    return torch.log(system.a.to(torch.complex128)) if system.log_a is None else system.log_a
