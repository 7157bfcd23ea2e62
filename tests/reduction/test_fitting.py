"""The fit of a reduced system to samples, against least squares by LAPACK, finite differences and known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace
from compressm.reduction import fitting
from compressm.reduction.fitting import Fitted, NotFitted, Samples, fit
from compressm.testing.systems import ring_system, stack_systems, unstack_systems

LIMIT = torch.tensor(0.99, dtype=torch.float64)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ring(order: int, seed: int, inputs: int = 2, outputs: int = 3) -> StateSpace:
    system = ring_system(order, inputs, outputs, seed=seed, smallest=0.5, largest=0.95)
    return replace(system, d=None)


def moved(system: StateSpace, size: float, seed: int = 5) -> StateSpace:
    """The system with other poles and output weights, about `size` away."""
    angle, c = gaussian(*system.a.shape, seed=seed), gaussian(*system.c.shape, seed=seed + 1)
    rate = 1 + size * gaussian(*system.a.shape, seed=seed + 2).clamp(-1, 1)
    a = torch.exp(torch.complex(torch.log(system.a.abs()) * rate, torch.angle(system.a) + size * angle))
    return replace(system, a=a, c=system.c * (1 + size * c), log_a=None)


def samples_of(system: StateSpace, count: int = 12, length: int = 60, seed: int = 0) -> Samples:
    u = gaussian(count, length, system.input_features, seed=seed)
    return Samples(u, system.simulate(u), torch.ones(count, length, dtype=torch.bool))


def error(system: StateSpace, samples: Samples) -> float:
    left = (samples.y - system.simulate(samples.u))[samples.data]
    return float(left.norm() / samples.y[samples.data].norm())


def fitted(small: StateSpace, samples: Samples, limit: Tensor = LIMIT) -> Fitted:
    found = fit(small, samples[::2], samples[1::2], limit.expand(small.batch_shape))
    assert isinstance(found, Fitted)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_system_nearby_is_found_again(seed: int) -> None:
    system = ring(3, seed)
    start, samples = moved(system, 0.05), samples_of(system)
    assert error(start, samples) > 0.02
    found = fitted(start, samples)
    assert error(found.system, samples) < 1e-3 * error(start, samples)
    torch.testing.assert_close(found.system.a, system.a, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.system.c - start.c, found.change) and torch.equal(found.system.b, start.b)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_reported_is_the_error_on_the_samples_left_out(seed: int) -> None:
    full, start = ring(6, seed), ring(2, seed + 10)
    samples = samples_of(full)
    found = fitted(start, samples)
    assert found.before == pytest.approx(error(start, samples[1::2]), rel=1e-9)
    assert found.after == pytest.approx(error(found.system, samples[1::2]), rel=1e-5)
    assert found.after < found.before and found.system.is_stable()


def test_output_weights_of_a_dense_system_are_the_least_squares_solution() -> None:
    full, rows = ring(6, 1), gaussian(4, 4, seed=3)
    a = 0.9 * rows / torch.linalg.matrix_norm(rows, 2)
    small = StateSpace(a, gaussian(4, 2, seed=4), gaussian(3, 4, seed=5))
    samples = samples_of(full)
    found = fitted(small, samples)
    states = replace(small, c=torch.eye(4, dtype=torch.float64)).simulate(samples.u[::2]).flatten(0, 1)
    wanted = torch.linalg.lstsq(states, samples.y[::2].flatten(0, 1)).solution.mT
    torch.testing.assert_close(found.system.c, wanted, rtol=1e-8, atol=1e-8)
    assert torch.equal(found.system.a, small.a)


def test_the_step_of_the_poles_follows_the_gradient() -> None:
    full, start = ring(6, 2), ring(3, 3)
    problem = fitting._Problem(start.with_batch(1), samples_of(full))
    assert problem.log_a is not None
    point = problem.best(problem.log_a)
    _, gradient = fitting._normal_equations(problem, point)
    for k in range(3):
        for part in range(2):
            step = torch.zeros_like(problem.log_a)
            step[0, k] = 1e-5 * (problem.log_a[0, k].real if part == 0 else 1j)  # of log decay, of the angle
            ahead, behind = (problem.best(problem.log_a + s * step).error for s in (1, -1))
            slope = float(ahead - behind) / 2e-5
            assert slope == pytest.approx(-2 * float(gradient[0, 2 * k + part]), rel=1e-4, abs=1e-4)


def test_systems_of_a_bank_are_fitted_each_for_itself() -> None:
    full = stack_systems([ring(5, seed, 1, 1) for seed in range(3)])
    small = stack_systems([ring(2, seed + 7, 1, 1) for seed in range(3)])
    samples = samples_of(full)
    found = fitted(small, samples)
    for k, (one, alone) in enumerate(zip(unstack_systems(found.system), unstack_systems(small), strict=True)):
        own = Samples(samples.u[..., k : k + 1], samples.y[..., k : k + 1], samples.data)
        single = fit(alone, own[::2], own[1::2], LIMIT)
        wanted = alone if isinstance(single, NotFitted) else single.system
        torch.testing.assert_close(one.a, wanted.a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.c, wanted.c, rtol=1e-5, atol=1e-6)
        assert error(one, own[1::2]) <= error(alone, own[1::2])


@pytest.mark.parametrize("dense", [False, True])
def test_a_bank_in_pieces_is_fitted_as_in_one(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    full = stack_systems([ring(5, seed, 2, 1) for seed in range(5)])
    small = stack_systems([ring(2, seed + 7, 2, 1) for seed in range(5)])
    if dense:
        a = 0.9 * torch.linalg.qr(gaussian(5, 2, 2)).Q
        small = replace(small, log_a=None, a=a, b=gaussian(5, 2, 2), c=gaussian(5, 1, 2))
    samples = samples_of(full)
    whole = fitted(small, samples)
    monkeypatch.setattr(fitting, "_NUMBERS", 2 * samples[::2].data.numel() * small.order)  # 2, 2 and 1 systems
    parts = fitted(small, samples)
    assert (parts.before, parts.after) == pytest.approx((whole.before, whole.after), rel=1e-9)
    torch.testing.assert_close(parts.system.a, whole.system.a, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(parts.system.c, whole.system.c, rtol=1e-5, atol=1e-8)


def test_idle_states_stay_idle_and_poles_within_the_limit() -> None:
    full, start = ring(6, 4), ring(3, 5)
    start = replace(start, c=start.c.clone().index_fill_(-1, torch.tensor([1]), 0))
    found = fitted(start, samples_of(full), start.a.abs().max())
    assert bool((found.system.c[:, 1] == 0).all()) and found.system.a[1] == pytest.approx(complex(start.a[1]))
    assert float(found.system.a.abs().max()) <= float(start.a.abs().max()) * (1 + 1e-12)


def test_padding_does_not_count() -> None:
    full, start = ring(6, 6), ring(2, 8)
    whole = samples_of(full, length=40)
    data = torch.arange(60) < 40
    longer = [torch.nn.functional.pad(t, (0, 0, 0, 20)) for t in (whole.u, whole.y)]
    longer[1][:, 40:] = 1e3
    padded = Samples(longer[0], longer[1], data.expand(len(whole.u), -1))
    torch.testing.assert_close(fitted(start, padded).system.c, fitted(start, whole).system.c, rtol=1e-6, atol=1e-8)


def test_nothing_is_changed_without_need_or_ground() -> None:
    system = ring(3, 0)
    samples = samples_of(system)
    no_better = NotFitted("no fit lowers the error on the sequences that are left out")
    assert fit(system, samples[::2], samples[1::2], LIMIT) == no_better  # nothing was lost
    few = samples_of(ring(6, 0), length=2)
    assert fit(system, few[::2], few[1::2], LIMIT) == NotFitted("12 positions to fit to; 60 are needed")
    silent = Samples(samples.u * 0, samples.y * 0, samples.data)
    assert fit(system, silent[::2], silent[1::2], LIMIT) == no_better
    noise = Samples(samples.u, gaussian(*samples.y.shape, seed=9), samples.data)
    best = fit(replace(system, c=system.c * 1e-6), noise[::2], noise[1::2], LIMIT)
    assert isinstance(best, NotFitted) or best.after < best.before
    assert isinstance(fit(replace(system, output="complex"), samples[::2], samples[1::2], LIMIT), NotFitted)
