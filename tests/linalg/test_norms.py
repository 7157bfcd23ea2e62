from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from compressm.errors import InvalidSystemError, UnstableSystemError
from compressm.linalg.forms import realify
from compressm.linalg.norms import difference, error_bound, h2_error_and_norm, h2_norm, hinf_estimate, hinf_norm
from compressm.linalg.peak import exact_gain
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, build_diagonal, ring_system, stack_systems


def scalar(a: complex, b: complex = 1, c: complex = 1, d: float | None = None) -> StateSpace:
    matrices = (torch.tensor(t, dtype=torch.complex128) for t in ([a], [[b]], [[c]]))
    feed = None if d is None else torch.tensor([[d]], dtype=torch.float64)
    return StateSpace(*matrices, feed, output="complex")


def dense_grid(system: StateSpace, points: int = 20001) -> float:
    """The largest gain on many points and more about every pole."""
    omega = torch.linspace(-torch.pi, torch.pi, points, dtype=torch.float64)
    poles = system.a if system.is_diagonal else torch.linalg.eigvals(system.a)
    near = torch.angle(poles + 0j)[:, None] + torch.linspace(-1e-3, 1e-3, points // 40, dtype=torch.float64)
    return float(exact_gain(system, torch.cat([omega, near.flatten(), -near.flatten()])).max())


@pytest.mark.parametrize("pole", [0.5, -0.5, 0.6 + 0.3j, 0.9999, -0.9999, 1e-12, 0.0])
def test_one_state(pole: complex) -> None:
    """|G|_inf = |b c| / (1 - |a|) and |G|_2 = |b c| / sqrt(1 - |a|^2)."""
    system = scalar(pole, 3, 2j)
    assert hinf_norm(system) == pytest.approx(6 / (1 - abs(pole)), rel=1e-9)
    assert hinf_estimate(system) == pytest.approx(6 / (1 - abs(pole)), rel=1e-9)
    assert h2_norm(system) == pytest.approx(6 / math.sqrt(1 - abs(pole) ** 2), rel=1e-9)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_poles_beside_minus_one(gap: float) -> None:
    """Where the bilinear transform about -1 would break down."""
    system = scalar(-1 + gap, 1, 1)
    other = difference(system, scalar(0.5, 2, 1))
    assert hinf_norm(system) == pytest.approx(1 / gap, rel=1e-6)
    assert hinf_norm(other) == pytest.approx(1 / gap - 4 / 3, rel=1e-6)


def test_an_all_pass_section_has_gain_one_everywhere() -> None:
    """The hardest case for a level test: every frequency crosses. G = (z^-1 - conj(a)) / (1 - a z^-1)."""
    a = 0.7 + 0.2j
    textbook_c, d = 1 - abs(a) ** 2, -a.conjugate()
    matrices = (
        torch.tensor(t, dtype=torch.complex128) for t in ([a], [[1.0]], [[textbook_c / a]], [[d - textbook_c / a]])
    )
    system = StateSpace(*matrices, output="complex")
    omega = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(exact_gain(system, omega), torch.ones(7, dtype=torch.float64))
    assert hinf_norm(system) == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("build", [build_diagonal, build_dense])
@pytest.mark.parametrize("seed", range(6))
def test_norm_against_a_dense_grid(build, seed: int) -> None:
    kinds = (PoleKind.RING, PoleKind.SLOW, PoleKind.NEGATIVE, PoleKind.NEARLY_REPEATED, PoleKind.MIRRORED)
    output = "real" if seed % 2 else "complex"
    system = build(Recipe(kinds[: 2 + seed % 4], 1 + seed % 3, 2, seed, feedthrough=seed % 3 == 0, output=output))
    grid, norm, estimate = dense_grid(system), hinf_norm(system), hinf_estimate(system)
    assert grid <= norm * (1 + 1e-9)
    assert norm == pytest.approx(grid, rel=1e-3)
    assert 0.97 * norm <= estimate <= norm * (1 + 1e-9)


@pytest.mark.parametrize("channels", [3, 16, 17, 24])
def test_wide_systems(channels: int) -> None:
    """Above 16 channels the estimate is a power iteration; the norm is not."""
    system = ring_system(6, channels, channels, seed=1)
    norm, estimate = hinf_norm(system), hinf_estimate(system)
    assert norm == pytest.approx(dense_grid(system, 2001), rel=1e-3)
    assert 0.97 * norm <= estimate <= norm * (1 + 1e-9)
    assert hinf_norm(realify(system)) == pytest.approx(norm, rel=1e-7)
    assert hinf_estimate(realify(system)) == pytest.approx(norm, rel=0.03)


@pytest.mark.parametrize("distance", [1e-2, 1e-5, 1e-9])
def test_a_small_error_between_wide_systems_is_not_round_off_of_single_precision(distance: float) -> None:
    """The search is in single precision where that tells the error; below, round-off would be found."""
    system = ring_system(6, 20, 20, seed=1)
    other = replace(system, c=system.c + distance * ring_system(6, 20, 20, seed=2).c)
    error = difference(system, other)
    wanted = hinf_norm(replace(system, c=system.c - other.c))
    assert wanted < 30 * distance * hinf_norm(system)
    assert 0.97 * wanted <= hinf_estimate(error) <= wanted * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_estimate_of_a_wide_system_scales_with_its_weights(scale: float) -> None:
    """Beyond what single precision holds."""
    system = ring_system(6, 20, 24, seed=1, largest=0.99999)
    scaled = replace(system, b=system.b * scale, c=system.c * scale)
    assert hinf_estimate(scaled) == pytest.approx(hinf_estimate(system) * scale**2, rel=1e-6)


@pytest.mark.parametrize("build", [build_diagonal, build_dense])
@pytest.mark.parametrize("output", ["real", "complex"])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_h2_norms_of_an_error_and_of_the_whole_together(build, output: str, feedthrough: bool) -> None:
    kinds = (PoleKind.RING, PoleKind.FAST, PoleKind.SLOW)
    full = build(Recipe(kinds, 2, 3, 5, feedthrough=feedthrough, output=output))
    reduced = replace(build(Recipe(kinds[1:], 2, 3, 6, output=output)), d=full.d)
    wanted = h2_norm(difference(full, reduced)), h2_norm(full)
    assert h2_error_and_norm(full, reduced) == pytest.approx(wanted, rel=1e-10)
    near = replace(full, c=full.c * (1 + 1e-9))
    assert h2_error_and_norm(full, near)[0] == pytest.approx(h2_norm(replace(full, c=full.c * 1e-9, d=None)), rel=1e-5)


@pytest.mark.parametrize("feedthrough", ["none", "diagonal", "dense", "cancelling"])
def test_h2_norm_of_many_poles_against_the_impulse_response(feedthrough: str) -> None:
    """More poles than one block of pairs holds."""
    system = ring_system(150, 5, 5, seed=3, largest=0.95)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    first = (system.c @ system.b).real
    feeds = {"none": None, "diagonal": dense.diag().diag(), "dense": dense, "cancelling": -first}
    system = replace(system, d=feeds[feedthrough])
    wanted = float(system.markov_parameters(800).square().sum().sqrt())
    assert h2_norm(system) == pytest.approx(wanted, rel=1e-11)
    reduced = ring_system(70, 5, 5, seed=4, largest=0.95)
    reduced = replace(reduced, d=system.d)
    gap = (system.markov_parameters(800) - reduced.markov_parameters(800)).square().sum().sqrt()
    assert h2_error_and_norm(system, reduced) == pytest.approx((float(gap), wanted), rel=1e-11)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("feedthrough", [False, True])
def test_the_estimate_of_wide_errors_with_narrow_peaks(seed: int, feedthrough: bool) -> None:
    """The climb from the grid ends at the norm, whatever the number of inputs and outputs."""
    full = ring_system(24, 20 + 3 * seed, 28 - 2 * seed, seed=seed, largest=1 - 10.0 ** -(1 + seed))
    reduced = ring_system(9, full.inputs, full.outputs, seed=seed + 10, largest=0.99)
    if feedthrough:
        generator = torch.Generator().manual_seed(seed)
        full = replace(full, d=torch.randn(full.outputs, full.inputs, generator=generator, dtype=torch.float64))
    for system in (difference(full, reduced), difference(realify(full), realify(reduced))):
        norm = hinf_norm(system)
        assert 0.995 * norm <= hinf_estimate(system) <= norm * (1 + 1e-7)


def slow_comb(systems: int, states: int, channels: int, step: float, seed: int) -> StateSpace:
    """S4D-Lin's poles, -1/2 + i pi n, spread by a tenth and sampled with this step; systems 0: no bank."""
    generator = torch.Generator().manual_seed(seed)
    batch = (systems,) if systems else ()
    poles = torch.complex(torch.tensor(-0.5, dtype=torch.float64), torch.pi * torch.arange(states, dtype=torch.float64))
    poles = poles * (1 + 0.1 * torch.randn(*batch, states, dtype=torch.float64, generator=generator))
    b = torch.randn(*batch, states, channels, dtype=torch.complex128, generator=generator)
    c = torch.randn(*batch, channels, states, dtype=torch.complex128, generator=generator)
    log_a = poles * step
    return StateSpace(torch.exp(log_a), b * (torch.expm1(log_a) / poles).unsqueeze(-1), c, log_a=log_a)


@pytest.mark.parametrize("step", [1e-3, 3e-7, 1e-9])
@pytest.mark.parametrize(("systems", "channels"), [(2, 1), (0, 1), (0, 3), (0, 20)])
def test_the_estimate_of_many_slow_poles_in_a_narrow_band(step: float, systems: int, channels: int) -> None:
    """Peaks far narrower than the spacing of the uniform points, and more poles than angles on the grid."""
    for seed in range(2):
        full = slow_comb(systems, 64, channels, step, seed)
        kept = replace(full, a=full.a[..., :32], b=full.b[..., :32, :], c=full.c[..., :32], log_a=full.log_a[..., :32])
        other = replace(kept, c=kept.c * (1 + 0.1 * slow_comb(systems, 32, channels, step, seed + 2).c.real))
        for system in (full, difference(full, other)):
            width = float(-system.log_a.real.max())
            about = torch.angle(system.a).flatten()
            omega = torch.cat([about + width * offset for offset in torch.linspace(-4, 4, 17).tolist()])
            each = [replace(system, a=a, b=b, c=c, d=None, log_a=log_a) for a, b, c, log_a in parts_of(system)]
            wanted = max(float(exact_gain(one, omega).max()) for one in each)
            assert hinf_estimate(system) >= 0.98 * wanted


def parts_of(system: StateSpace) -> list[tuple[torch.Tensor, ...]]:
    tensors = (system.a, system.b, system.c, system.log_a)
    return list(zip(*tensors, strict=True)) if system.batch_shape else [tensors]


def test_defective_dense_systems_are_swept_without_eigenvectors() -> None:
    jordan = 0.9 * torch.eye(4, dtype=torch.float64) + torch.diag(torch.ones(3, dtype=torch.float64), 1)
    b, c = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    b[3], c[:, 0] = 1, 1
    system = StateSpace(jordan, b, c)  # G(1) = 1 / (1 - 0.9)^4
    assert hinf_estimate(system) == pytest.approx(1e4, rel=1e-9)
    assert hinf_norm(system) == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize("defect", [Defect.ZERO_B, Defect.ZERO_C])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_systems_without_a_map_but_d(defect: Defect, feedthrough: bool) -> None:
    system = build_diagonal(Recipe((PoleKind.RING,) * 3, 2, 3, 1, frozenset({defect}), feedthrough))
    wanted = float(torch.linalg.matrix_norm(system.d, ord=2)) if feedthrough else 0.0
    assert hinf_norm(system) == pytest.approx(wanted, rel=1e-9)
    assert hinf_estimate(system) == pytest.approx(wanted, rel=1e-9)
    assert h2_norm(system) == pytest.approx(float(system.d.norm()) if feedthrough else 0.0)


@pytest.mark.parametrize(("n", "m", "p"), [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_empty_dimensions(n: int, m: int, p: int) -> None:
    system = StateSpace(torch.full((n,), 0.5), torch.ones(n, m), torch.ones(p, n))
    for norm in (hinf_norm, hinf_estimate, h2_norm):
        assert norm(system) == 0
    if n == 0:
        feed = torch.tensor([[3.0, 0], [0, 4.0], [0, 0]])
        assert hinf_norm(replace(system, d=feed)) == 4
        assert hinf_estimate(replace(system, d=feed)) == 4
        assert h2_norm(replace(system, d=feed)) == 5


@pytest.mark.parametrize("output", ["real", "complex"])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_h2_norm_is_that_of_the_impulse_response(output: str, feedthrough: bool) -> None:
    for build in (build_diagonal, build_dense):
        kinds = (PoleKind.FAST, PoleKind.NEAR_ZERO, PoleKind.FAST, PoleKind.ZERO)
        system = build(Recipe(kinds, 2, 3, 5, feedthrough=feedthrough, output=output))
        wanted = float(system.markov_parameters(200).abs().square().sum().sqrt())
        assert h2_norm(system) == pytest.approx(wanted, rel=1e-12)


def test_h2_norm_keeps_the_digits_of_a_small_error() -> None:
    """D = -C B: adding |C B + D|^2 - |C B|^2 to |C Lp|^2 would leave nothing but round-off."""
    system = build_diagonal(Recipe((PoleKind.NEAR_ZERO,) * 2, 2, 2, 2))
    cancelled = replace(system, d=-(system.c @ system.b).real)
    exact = float(cancelled.markov_parameters(60)[1:].square().sum().sqrt())
    assert exact < 1e-6 * float((system.c @ system.b).abs().max())
    assert h2_norm(cancelled) == pytest.approx(exact, rel=1e-9)


def test_h2_norm_of_a_slow_pole_known_by_its_logarithm() -> None:
    gap = 1e-14
    log_a = torch.tensor([-gap + 1j], dtype=torch.complex128)
    one = torch.ones(1, 1, dtype=torch.complex128)
    system = StateSpace(torch.exp(log_a), one, one, output="complex", log_a=log_a)
    assert h2_norm(system) == pytest.approx(1 / math.sqrt(2 * gap), rel=1e-12)


def test_norms_of_a_batch_are_the_largest() -> None:
    each = [ring_system(4, 2, 2, seed=seed) for seed in range(3)]
    batch = stack_systems(each)
    assert hinf_norm(batch) == pytest.approx(max(map(hinf_norm, each)), rel=1e-12)
    assert hinf_estimate(batch) == pytest.approx(max(map(hinf_estimate, each)), rel=1e-12)
    assert h2_norm(batch) == pytest.approx(max(map(h2_norm, each)), rel=1e-12)


def test_difference() -> None:
    first, second = ring_system(4, 2, 3, seed=0), ring_system(3, 2, 3, seed=1)
    omega = torch.linspace(-3, 3, 11, dtype=torch.float64)
    wanted = first.frequency_response(omega) - second.frequency_response(omega)
    for one, two in ((first, second), (realify(first), second), (first, realify(second))):
        gap = difference(one, two)
        assert gap.order >= 7
        assert torch.allclose(gap.frequency_response(omega), wanted, atol=1e-11)
    assert difference(first, second).log_a is not None
    d = torch.ones(3, 2)
    assert torch.allclose(difference(replace(first, d=d), second).d, d.double())
    assert hinf_norm(difference(first, first)) < 1e-12 * hinf_norm(first)
    assert h2_norm(difference(first, first)) < 1e-12 * h2_norm(first)


@pytest.mark.parametrize(
    "other",
    [
        ring_system(3, 2, 2),
        ring_system(3, 1, 3),
        replace(ring_system(3, 2, 3), output="complex"),
        replace(ring_system(3, 2, 3), sampling_time=0.0, log_a=None),
        stack_systems([ring_system(3, 2, 3)]),
    ],
)
def test_differences_of_unlike_systems_are_refused(other: StateSpace) -> None:
    with pytest.raises(InvalidSystemError, match="differ"):
        difference(ring_system(4, 2, 3), other)


def test_norms_that_do_not_exist_are_refused() -> None:
    unstable, continuous = scalar(1.2), replace(scalar(-1.0), sampling_time=0.0)
    for norm in (hinf_norm, h2_norm):
        with pytest.raises(UnstableSystemError):
            norm(unstable)
    for norm in (hinf_norm, h2_norm, hinf_estimate):
        with pytest.raises(InvalidSystemError, match="discretize"):
            norm(continuous)


def test_error_bound() -> None:
    values = torch.tensor([[4.0, 2.0, 1.0], [5.0, 1.0, 0.5]])
    assert error_bound(values, 1) == 6
    assert error_bound(values, 3) == 0
    assert error_bound(values[1], 0) == 13
