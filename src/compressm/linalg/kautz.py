"""Closed-form Gramian factors of diagonal systems with one input, in rational orthonormal bases."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.linalg.elementary import complex_expm1
from compressm.linalg.parallel import in_chunks

_NEAR = 0.25  # gaps and differences below this come from the logarithms of the poles


def kautz_factor(a: Tensor, b: Tensor, log_a: Tensor | None = None) -> Tensor:
    """F `(*h, n, 2n)`, complex, with x_i = F_i w for white real input: P = [Re F; Im F] [Re F; Im F]^T is the
    controllability Gramian of the real system behind x_k = a x_{k-1} + b u_k, `a` and `b` `(*h, n)`.

    F_ik = b_i g_k(a_i), where the g are the orthonormal basis of rational functions with real coefficients whose
    poles are the conjugate pairs of `a` (Kautz 1954). With D_j(z) = (1 - z conj a_j)(1 - z a_j), the pair j adds

        g(z) = s_j |1 -+ a_j| (1 +- z) / (sqrt(2) D_j(z)) * prod_{l < j} (z - a_l)(z - conj a_l) / D_l(z),

    s_j^2 = 1 - |a_j|^2. Every entry is a product, accurate to about n eps of itself: nothing is subtracted from it, and
    neither repeated nor real poles need care.
    """
    return in_chunks(_kautz, a.shape[-1] ** 2, a.shape[:-1], a, b, log_a)


def takenaka_factor(a: Tensor, b: Tensor, log_a: Tensor | None = None) -> Tensor:
    """F `(*h, n, n)` with F F* the controllability Gramian of the complex system x_k = a x_{k-1} + b u_k.

    F_ik = b_i g_k(a_i) with g_k(z) = s_k / (1 - z conj a_k) * prod_{l < k} (z - a_l) / (1 - z conj a_l) (Takenaka 1925,
    Malmquist 1926); lower triangular, accurate as `kautz_factor` is.
    """
    return in_chunks(_takenaka, a.shape[-1] ** 2, a.shape[:-1], a, b, log_a)


def _kautz(a: Tensor, b: Tensor, log_a: Tensor | None) -> Tensor:
    gaps, apart = _pairs(a, a, log_a, log_a)
    mirrored, across = _pairs(a, a.conj(), log_a, None if log_a is None else log_a.conj())
    own = gaps.diagonal(dim1=-2, dim2=-1).real
    denominators = gaps * mirrored
    passed = _cascade(apart * across / denominators) / denominators * b.unsqueeze(-1)
    column, scale = a.unsqueeze(-1), (own / 2).sqrt()
    plus = passed * ((1 + column) * ((1 - a).abs() * scale).unsqueeze(-2))
    minus = passed * ((1 - column) * ((1 + a).abs() * scale).unsqueeze(-2))
    return torch.cat([plus, minus], -1)


def _takenaka(a: Tensor, b: Tensor, log_a: Tensor | None) -> Tensor:
    gaps, apart = _pairs(a, a, log_a, log_a)
    scale = gaps.diagonal(dim1=-2, dim2=-1).real.sqrt()
    return _cascade(apart / gaps) / gaps * b.unsqueeze(-1) * scale.unsqueeze(-2)


def _cascade(sections: Tensor) -> Tensor:
    """The product of the sections before each one, along the last dimension."""
    return torch.cat([torch.ones_like(sections[..., :1]), sections[..., :-1].cumprod(-1)], -1)


def _pairs(a: Tensor, b: Tensor, log_a: Tensor | None, log_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 - a_i conj(b_j) and a_i - b_j; where they are small, from the logarithms by expm1."""
    column, row = a.unsqueeze(-1), b.unsqueeze(-2)
    gaps, apart = 1 - column * row.conj(), column - row
    if log_a is None or log_b is None or not bool(torch.isfinite(log_a).all()):
        return gaps, apart
    *batch, i, j = (gaps.abs() < _NEAR).nonzero(as_tuple=True)
    if i.numel():
        exact = -complex_expm1(log_a[*batch, i] + log_b[*batch, j].conj())
        gaps = gaps.index_put((*batch, i, j), exact)
    *batch, i, j = (apart.abs() < _NEAR * row.abs()).nonzero(as_tuple=True)
    if i.numel():
        exact = b[*batch, j] * complex_expm1(log_a[*batch, i] - log_b[*batch, j])
        apart = apart.index_put((*batch, i, j), exact)
    return gaps, apart
