"""Closed-form Gramian factors of diagonal systems with one input, in rational orthonormal bases.

All products come from half the logarithms of the poles, l = log(a) = -nu + i theta:

    1 - a_i conj(a_j) = -2 e^{(l_i + conj l_j) / 2} sinh((l_i + conj l_j) / 2),
    a_i - a_j = 2 e^{(l_i + l_j) / 2} sinh((l_i - l_j) / 2),

so that neither |a| -> 1 nor poles close to one another lose digits. A pole given without its logarithm is taken to be
exp(log(a)): itself, but for a rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.linalg.parallel import in_pieces

_VANISHED = 300.0  # -log|a| from which a pole counts as e^-300; squares of e^300 are still finite


def kautz_factor(a: Tensor, b: Tensor, log_a: Tensor | None = None) -> Tensor:
    """F `(*h, n, 2n)`, complex, with x_i = F_i w for white real input: P = [Re F; Im F] [Re F; Im F]^T is the
    controllability Gramian of the real system behind x_k = a x_{k-1} + b u_k, `a` and `b` `(*h, n)`.

    F_ik = b_i g_k(a_i), where the g are the orthonormal basis of rational functions with real coefficients whose
    poles are the conjugate pairs of `a` (Kautz 1954). With D_j(z) = (1 - z conj a_j)(1 - z a_j), the pair j adds

        g(z) = s_j |1 -+ a_j| (1 +- z) / (sqrt(2) D_j(z)) * prod_{l < j} (z - a_l)(z - conj a_l) / D_l(z),

    s_j^2 = 1 - |a_j|^2. Every entry is a product, accurate to about n eps of itself: nothing is subtracted from it, and
    neither repeated nor real poles need care.
    """
    return in_pieces(_kautz, a.shape[-1] ** 2, a.shape[:-1], a, b, log_a)[0]


def kautz_factors(a: Tensor, b: Tensor, c: Tensor, log_a: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Real factors `(*h, 2n, 2n)` of both Gramians of the real system behind y_k = Re(c x_k), in [Re x; Im x].

    They share one basis: F = b_i g_k(a_i) for P, and for Q, whose system has the poles conj a and the input weights
    conj c, conj(c_i g_k(a_i)), since the coefficients of the g are real.
    """
    p, q = in_pieces(_real_kautz, 2 * a.shape[-1] ** 2, a.shape[:-1], a, b, c, log_a)
    return p, q


def takenaka_factor(a: Tensor, b: Tensor, log_a: Tensor | None = None) -> Tensor:
    """F `(*h, n, n)` with F F* the controllability Gramian of the complex system x_k = a x_{k-1} + b u_k.

    F_ik = b_i g_k(a_i) with g_k(z) = s_k / (1 - z conj a_k) * prod_{l < k} (z - a_l) / (1 - z conj a_l) (Takenaka 1925,
    Malmquist 1926); lower triangular, accurate as `kautz_factor` is.
    """
    return in_pieces(_takenaka, a.shape[-1] ** 2, a.shape[:-1], a, b, log_a)[0]


def _kautz(a: Tensor, b: Tensor, log_a: Tensor | None) -> tuple[Tensor]:
    return (_kautz_basis(a, log_a) * b.unsqueeze(-1),)


def _real_kautz(a: Tensor, b: Tensor, c: Tensor, log_a: Tensor | None) -> tuple[Tensor, Tensor]:
    basis = _kautz_basis(a, log_a)
    p, q = basis * b.unsqueeze(-1), basis * c.unsqueeze(-1)
    return torch.cat([p.real, p.imag], -2), torch.cat([q.real, -q.imag], -2)


def _kautz_basis(a: Tensor, log_a: Tensor | None) -> Tensor:
    """g_k(a_i), `(*h, n, 2n)`.

    The pair j of poles contributes N_ij / D_ij to later ones with the products of two hyperbolic sines

        N_ij, D_ij = S^2 cos(theta_i) - sin((theta_i - theta_j) / 2) sin((theta_i + theta_j) / 2)
                     + i S sqrt(1 + S^2) sin(theta_i),    S = sinh((nu_j - nu_i) / 2), -sinh((nu_j + nu_i) / 2),

    whose cancellations are harmless: the terms of the real part are at most |N|, by Cauchy's inequality.
    """
    nu, theta = _decay_and_angle(a, log_a)
    turn = theta / 2
    between = torch.sin(_column(turn) - _row(turn)).mul_(torch.sin(_column(turn) + _row(turn)))
    cos, sin = _column(torch.cos(theta)), _column(torch.sin(theta))

    def product(sine: Tensor) -> Tensor:
        square = sine * sine
        return torch.complex(square * cos - between, sine * torch.sqrt(1 + square) * sin)

    inverse = product(-_sinh_of_mean(nu)).reciprocal()
    passed = _cascade(product(torch.sinh((_row(nu) - _column(nu)) / 2)).mul_(inverse)).mul_(inverse)
    # 1 -+ a = e^{l / 2} times -2 sinh(l / 2) and 2 cosh(l / 2); D_j(a_i) = 4 a_i e^{-nu_j} D_ij
    sinh, cosh, cos, sin = torch.sinh(nu / 2), torch.cosh(nu / 2), torch.cos(turn), torch.sin(turn)
    below, above = torch.complex(sinh * cos, -cosh * sin), torch.complex(cosh * cos, -sinh * sin)
    own = (-torch.expm1(-2 * nu) / 2).sqrt() * torch.exp(nu / 2)
    rows = torch.exp(torch.complex(nu / 2, -turn))
    plus = passed * _column(rows * above) * _row(own * below.abs())
    minus = passed * _column(rows * below) * _row(own * above.abs())
    return torch.cat([plus, minus], -1)


def _takenaka(a: Tensor, b: Tensor, log_a: Tensor | None) -> tuple[Tensor]:
    nu, theta = _decay_and_angle(a, log_a)
    angle = (_column(theta) - _row(theta)) / 2
    cos, sin = torch.cos(angle), torch.sin(angle)

    def sine(real: Tensor) -> Tensor:
        return torch.complex(real * cos, torch.sqrt(1 + real * real) * sin)

    inverse = -sine(-_sinh_of_mean(nu)).reciprocal()
    sections = sine(torch.sinh((_row(nu) - _column(nu)) / 2)).mul_(inverse)
    sections = sections * _row(torch.exp(torch.complex(torch.zeros_like(theta), theta)))
    own = (-torch.expm1(-2 * nu)).sqrt() * torch.exp(torch.complex(nu / 2, theta / 2)) / 2
    rows = b * torch.exp(torch.complex(nu / 2, -theta / 2))
    return (_cascade(sections).mul_(inverse) * _column(rows) * _row(own),)


def _decay_and_angle(a: Tensor, log_a: Tensor | None) -> tuple[Tensor, Tensor]:
    log_a = torch.log(a) if log_a is None else log_a
    return (-log_a.real).clamp(max=_VANISHED), log_a.imag


def _sinh_of_mean(nu: Tensor) -> Tensor:
    """sinh((nu_i + nu_j) / 2) of positive nu."""
    sinh, cosh = torch.sinh(nu / 2), torch.cosh(nu / 2)
    half = _column(sinh) * _row(cosh)
    return half + half.mT


def _cascade(sections: Tensor) -> Tensor:
    """The product of the sections before each one, along the last dimension."""
    return torch.cat([torch.ones_like(sections[..., :1]), sections[..., :-1].cumprod(-1)], -1)


def _column(t: Tensor) -> Tensor:
    return t.unsqueeze(-1)


def _row(t: Tensor) -> Tensor:
    return t.unsqueeze(-2)
