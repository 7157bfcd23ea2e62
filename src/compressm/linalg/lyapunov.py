"""Factors of the solutions of Stein and Lyapunov equations, never formed by subtraction.

Discrete: A P A* - P + G G* = 0. Continuous: A P + P A* + G G* = 0. All functions return L with P = L L*, batched over
leading dimensions, in double precision. Rows of L are accurate relative to their own size, so results do not depend on
a diagonal rescaling of the states.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError, UnstableSystemError
from compressm.linalg.elementary import complex_expm1

_EPS = torch.finfo(torch.float64).eps
_MAX_DOUBLINGS = 60  # |a| = 1 - 2^-53 decays below eps after 2^58 steps


def stein_gaps(a: Tensor, log_a: Tensor | None = None) -> Tensor:
    """1 - a_i conj(a_j), `(*h, n, n)`; from log(a) by expm1 where given, so that |a| -> 1 loses no digits."""
    if log_a is None or not bool(torch.isfinite(log_a).all()):
        return 1 - a.unsqueeze(-1) * a.unsqueeze(-2).conj()
    gaps = -complex_expm1(log_a.unsqueeze(-1) + log_a.unsqueeze(-2).conj())
    return gaps if a.is_complex() else gaps.real


def pole_differences(a: Tensor, log_a: Tensor | None = None) -> Tensor:
    """a_i - a_j, `(*h, n, n)`; from log(a) by expm1 where given."""
    if log_a is None or not bool(torch.isfinite(log_a).all()):
        return a.unsqueeze(-1) - a.unsqueeze(-2)
    differences = a.unsqueeze(-2) * complex_expm1(log_a.unsqueeze(-1) - log_a.unsqueeze(-2))
    return differences if a.is_complex() else differences.real


def cascade_factor(gaps: Tensor, differences: Tensor, g: Tensor) -> Tensor:
    """The lower triangular factor of P_ij = (G G*)_ij / gaps_ij by a cascade of all-pass sections.

    `gaps` is 1 - a_i conj(a_j) (or -(a_i + conj(a_j)) in continuous time) and `differences` a_i - a_j. Eliminating
    state k leaves a matrix of the same kind whose rows g_i have passed the Blaschke factor of pole k in the direction
    of g_k, so P is never formed and nothing is subtracted from it: repeated poles and unreachable states leave nothing
    but the round-off of their own rows. This is the Cholesky factor in the Takenaka-Malmquist basis (Mullhaupt and
    Riedel 2001; for the accuracy of Cauchy-like eliminations see Demmel 2000).
    """
    g = g.clone()
    n = g.shape[-2]
    scale = gaps.diagonal(dim1=-2, dim2=-1).real.sqrt()
    blaschke = differences / gaps
    factor = torch.zeros(*g.shape[:-1], n, dtype=torch.promote_types(g.dtype, gaps.dtype), device=g.device)
    g = g.to(factor.dtype)
    for k in range(n):
        rest = g[..., k:, :]
        row = rest[..., 0, :]
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        unit = row / torch.where(length > 0, length, torch.ones_like(length))
        along = torch.linalg.vecdot(unit.unsqueeze(-2), rest)  # <unit, g_i>
        factor[..., k:, k] = along * (scale[..., k : k + 1] / gaps[..., k:, k])
        rest += (along * (blaschke[..., k:, k] - 1)).unsqueeze(-1) * unit.unsqueeze(-2)
    return factor


def cholesky_factor(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors `(*h, n, n)` of Gramians, and for which `(*h,)` their entries determine all digits wanted.

    After scaling P to a unit diagonal, rounding errors in its entries change every Hankel singular value by a relative
    amount of at most about 50 eps / lambda_min; a factor is sound where that is below 1e-10, and meaningless elsewhere.
    """
    diagonal = gramian.diagonal(dim1=-2, dim2=-1).real
    sound = (diagonal > 0).all(-1)
    weights = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
    factor, info = torch.linalg.cholesky_ex(gramian / (weights.unsqueeze(-1) * weights.unsqueeze(-2)))
    sound &= info == 0
    if bool(sound.any()):
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        factor = torch.where(sound[..., None, None], factor, eye)
        sound &= 50 * _EPS * _inverse_norm_squared(factor) <= 1e-10
    return weights.unsqueeze(-1) * factor, sound


def _inverse_norm_squared(factor: Tensor, iterations: int = 12) -> Tensor:
    """Estimates `(*h,)` of |L^-1|_2^2 by power iteration."""
    n = factor.shape[-1]
    start = torch.cos(torch.arange(n, dtype=torch.float64) * 12.9898 + 1).to(factor.dtype)
    v = (start / torch.linalg.vector_norm(start)).unsqueeze(-1).expand(*factor.shape[:-2], n, 1)
    norm = v.new_zeros(factor.shape[:-2]).real
    for _ in range(iterations):
        v = torch.linalg.solve_triangular(factor, v, upper=False)
        v = torch.linalg.solve_triangular(factor.mH, v, upper=True)
        size = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
        norm = size[..., 0, 0]
        v = v / size
    return norm


def stein_factor(a: Tensor, g: Tensor, horizon: int | None = None) -> Tensor:
    """L with L L* = sum of A^k G G* A*^k over k < horizon (or all k), by doubling with QR compression.

    `a` is diagonal `(*h, n)` or dense `(*h, n, n)`. For the whole sum the spectral radius must be below 1
    (UnstableSystemError otherwise). Low-rank Smith doubling: Penzl 2000; compression by QR keeps the factor at n
    columns with errors relative to each row.
    """
    dtype = torch.promote_types(a.dtype, g.dtype)
    if a.ndim == g.ndim - 1:
        a = a.unsqueeze(-1)  # a column: acts by elementwise products, whatever the batch
        times = torch.mul
    else:
        times = torch.matmul
    a, power, factor = a.to(dtype), a.to(dtype), compress_columns(g.to(dtype))
    if horizon is None:
        for _ in range(_MAX_DOUBLINGS):
            addition = times(power, factor)
            if not bool(torch.isfinite(addition).all()):
                break
            if _negligible(addition, factor):
                return factor
            factor, power = compress_columns(torch.cat([factor, addition], dim=-1)), times(power, power)
        raise UnstableSystemError(
            "The Gramian's series does not converge: a pole lies on or outside the unit circle. Use a finite horizon."
        )
    for bit in _bits_after_first(horizon):
        factor, power = compress_columns(torch.cat([factor, times(power, factor)], -1)), times(power, power)
        if bit:
            factor, power = compress_columns(torch.cat([g.to(dtype), times(a, factor)], -1)), times(a, power)
    return factor


def compress_columns(factor: Tensor) -> Tensor:
    """A factor of the same product L L* with at most n columns, by QR of L*."""
    if factor.shape[-1] <= factor.shape[-2]:
        return factor
    return torch.linalg.qr(factor.mH, mode="r").R.mH


def cayley(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The discrete pair with the same Gramian as the continuous (A, G): (s I - A)^{-1} [s I + A, sqrt(2 s) G].

    s is the geometric mean of the largest and smallest singular values of A, so that fast and slow poles alike move
    away from the unit circle.
    """
    sizes = torch.linalg.svdvals(a)
    s = (sizes[..., :1] * sizes[..., -1:]).sqrt().unsqueeze(-1)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    left = s * eye - a
    dtype = torch.promote_types(a.dtype, g.dtype)
    return torch.linalg.solve(left, s * eye + a), torch.linalg.solve(left.to(dtype), (2 * s).sqrt() * g.to(dtype))


def _negligible(addition: Tensor, factor: Tensor) -> bool:
    rows, whole = (torch.linalg.vector_norm(t, dim=-1) for t in (addition, factor))
    return bool((rows <= _EPS * whole).all())


def _bits_after_first(horizon: int) -> Iterator[bool]:
    if horizon < 1:
        raise InvalidSystemError(f"horizon is {horizon}; wanted 1 or more steps.")
    return (bit == "1" for bit in bin(horizon)[3:])
