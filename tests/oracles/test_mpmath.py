"""Hankel singular values against 50-digit arithmetic: the accuracy that the library states.

The relative error is below 1e-9 for values above 1e-4 of the largest and below 1e-6 for those above 1e-7. The floor
beyond is absolute: 1e-12 of the largest weight |Lp_i| |Lq_i| of a state, which is about the largest value unless strong
states cancel.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, build_diagonal

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp

FLOOR = 1e-12


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(60):  # ten more than claimed, for what the reference itself loses
        yield


def doubled(a: list, b, c):
    """The complex system of the real part of the output: (a, conj a), [B; conj B], [C, conj C] / 2."""
    n, m, p = len(a), b.cols, c.rows
    b2, c2 = mpmath.matrix(2 * n, m), mpmath.matrix(p, 2 * n)
    for i in range(n):
        for j in range(m):
            b2[i, j], b2[n + i, j] = b[i, j], mpmath.conj(b[i, j])
        for j in range(p):
            c2[j, i], c2[j, n + i] = c[j, i] / 2, mpmath.conj(c[j, i]) / 2
    return a + [mpmath.conj(z) for z in a], b2, c2


def closed_form(a: list, gram):
    n = len(a)
    p = mpmath.matrix(n, n)
    for i in range(n):
        for j in range(n):
            p[i, j] = gram[i, j] / (1 - a[i] * mpmath.conj(a[j]))
    return p


def by_doubling(a, gram):
    """sum of A^k G A*^k."""
    total = gram.copy()
    for _ in range(60):
        addition = a * total * a.H
        total += addition
        a = a * a
        if mpmath.mnorm(addition, 1) <= mpmath.mpf(10) ** -55 * mpmath.mnorm(total, 1):
            return total
    raise AssertionError("the reference does not converge")


def reference_values(system: StateSpace, frame: Frame) -> Tensor:
    """The square roots of the eigenvalues of P Q for the exact double precision inputs."""
    b, c = mpmath.matrix(system.b.tolist()), mpmath.matrix(system.c.tolist())
    if system.is_diagonal:
        exact = system.log_a if system.log_a is not None else system.a
        a = [mpmath.mpc(z.real, z.imag) for z in exact.tolist()]
        a = [mpmath.exp(z) for z in a] if system.log_a is not None else a
        if frame is Frame.REAL:
            a, b, c = doubled(a, b, c)
        p, q = closed_form(a, b * b.H), closed_form([mpmath.conj(z) for z in a], c.H * c)
    else:
        dense = mpmath.matrix(system.a.tolist())
        p, q = by_doubling(dense, b * b.H), by_doubling(dense.H, c.H * c)
    n = p.rows
    scale = [mpmath.sqrt(p[i, i].real) or mpmath.mpf(1) for i in range(n)]
    for i in range(n):
        for j in range(n):
            p[i, j] /= scale[i] * scale[j]
            q[i, j] *= scale[i] * scale[j]
    values, vectors = mpmath.eighe(p)
    root = vectors * mpmath.diag([mpmath.sqrt(max(v, mpmath.mpf(0))) for v in values])
    product = root.H * q * root
    squares = mpmath.eighe((product + product.H) / 2, eigvals_only=True)
    return torch.tensor(sorted((float(mpmath.sqrt(max(s, 0))) for s in squares), reverse=True), dtype=torch.float64)


def check(system: StateSpace, frame: Frame) -> None:
    wanted, found = reference_values(system, frame), hankel_singular_values(system, frame)
    assert not bool(found.isnan().any())
    factors = gramian_factors(system, frame)
    weight = float((factors.controllability.norm(dim=-1) * factors.observability.norm(dim=-1)).max())
    error, largest = (found - wanted).abs(), wanted[0]
    assert bool((error <= FLOOR * weight + 1e-28).all())
    if float(largest) > 1e-4 * weight + 1e-28:  # else strong states cancel, and only the floor is promised
        strong, middle = wanted > 1e-4 * largest, (wanted > 1e-7 * largest) & (wanted <= 1e-4 * largest)
        assert bool((error[strong] <= 1e-9 * wanted[strong]).all())
        assert bool((error[middle] <= 1e-6 * wanted[middle]).all())


def recipe(seed: int, order: int) -> Recipe:
    rng = random.Random(seed)
    return Recipe(
        kinds=tuple(rng.choice(list(PoleKind)) for _ in range(order)),
        inputs=rng.randint(1, 3),
        outputs=rng.randint(1, 3),
        seed=seed,
        defects=frozenset(rng.sample(list(Defect)[:3], rng.randint(0, 2))),
        with_log=rng.random() < 0.5,
    )


def test_the_reference_itself_on_one_state() -> None:
    a, b, c = 0.6 + 0.3j, 2.0 - 1.0j, 0.5 + 4.0j
    one = StateSpace(*(torch.tensor(t, dtype=torch.complex128) for t in ([a], [[b]], [[c]])), output="complex")
    wanted = abs(b * c) / (1 - abs(a) ** 2)
    assert float(reference_values(one, Frame.COMPLEX)[0]) == pytest.approx(wanted, rel=1e-15)
    assert float(reference_values(in_frame(one, Frame.COMPLEX), Frame.COMPLEX)[0]) == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("seed", range(34))
def test_diagonal_systems(seed: int) -> None:
    system = build_diagonal(recipe(seed, 4 + seed % 4))
    check(system, Frame.REAL if seed % 2 else Frame.COMPLEX)


@pytest.mark.parametrize("seed", range(16))
def test_dense_systems(seed: int) -> None:
    output = "real" if seed % 2 else "complex"
    system = build_dense(replace(recipe(100 + seed, 3 + seed % 3), output=output))
    check(system, Frame.REAL if output == "real" else Frame.COMPLEX)


@pytest.mark.parametrize("gap", [1e-5, 1e-9, 1e-13])
def test_poles_that_round_to_the_unit_circle_in_single_precision(gap: float) -> None:
    """1 - |a| comes from the logarithm, in double precision, however near to 1 |a| is."""
    log_a = torch.complex(
        torch.tensor([-gap, -gap * (1 + 1e-3), -0.1], dtype=torch.float64), torch.tensor([1.0, 1.0, 2.0]).double()
    )
    a = torch.exp(log_a)
    if gap < 1e-8:
        assert bool((a.abs().float() == 1).any())
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(3, 2, generator=generator, dtype=torch.complex128)
    c = torch.randn(2, 3, generator=generator, dtype=torch.complex128)
    system = StateSpace(a, b, c, log_a=log_a)
    for frame in Frame:
        wanted, found = reference_values(system, frame), hankel_singular_values(system, frame)
        assert torch.allclose(found[: len(wanted) - 1], wanted[:-1], rtol=1e-9, atol=1e-13 * float(wanted[0]))


@pytest.mark.parametrize("gap", [0.3, 1e-3, 1e-7, 1e-12])
@pytest.mark.parametrize("with_log", [False, True])
def test_single_input_single_output_systems_with_crowded_real_and_vanishing_poles(gap: float, with_log: bool) -> None:
    """The rational bases, in either frame; without logarithms for poles away from the circle, where they say it all."""
    nu = torch.tensor([gap, 1.001 * gap, 2 * gap, 0.3, 0.3, 40.0, 0.2, 900.0], dtype=torch.float64)
    theta = torch.tensor([1.0, 1.0 + gap, -1.0, 0.0, torch.pi, 2.0, 25.0, 1.0], dtype=torch.float64)
    log_a = torch.complex(nu.neg() if with_log else nu.clamp_min(0.1).neg(), theta)
    generator = torch.Generator().manual_seed(0)
    b, c = torch.randn(2, len(nu), generator=generator, dtype=torch.complex128)
    system = StateSpace(log_a.exp(), b[:, None], c[None], log_a=log_a if with_log else None)
    for frame in Frame:
        check(system, frame)


def test_singular_values_far_below_are_finite_and_small() -> None:
    """sqrt(eig(P Q)) gives NaN for about half of these."""
    system = build_diagonal(Recipe((PoleKind.FAST,) * 18, seed=4))
    wanted, found = reference_values(system, Frame.COMPLEX), hankel_singular_values(system, Frame.COMPLEX)
    assert float(wanted[-1]) < 1e-12 * float(wanted[0])
    assert bool(torch.isfinite(found).all())
    assert bool((found >= 0).all())
    assert float((wanted - found).abs().max()) <= 1e-14 * float(wanted[0])
    spectrum = hankel_spectrum(gramian_factors(system, Frame.COMPLEX))
    assert bool((spectrum.values.diff() <= 0).all())
