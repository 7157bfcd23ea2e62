from __future__ import annotations

import math

import pytest
import torch

from compressm.errors import CompressmError, InvalidSystemError, UnstableSystemError
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.statespace import StateSpace
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, build_diagonal, ring_system


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [
        ((3,), (4, 2), (2, 4), None),
        ((3,), (3, 2), (2, 4), None),
        ((3, 4), (3, 2), (2, 3), None),
        ((3,), (3,), (3,), None),
        ((3,), (3, 2), (2, 3), (2, 3)),
        ((2, 3), (5, 3, 2), (5, 2, 3), None),
        ((5, 3), (5, 3, 2), (4, 2, 3), None),
        ((3, 3, 3), (3, 2), (2, 3), None),
    ],
)
def test_shapes_that_do_not_fit_are_refused(a: tuple, b: tuple, c: tuple, d: tuple | None) -> None:
    with pytest.raises(InvalidSystemError, match=r"found .*\("):
        StateSpace(torch.zeros(a), torch.zeros(b), torch.zeros(c), None if d is None else torch.zeros(d))


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    values = {"a": torch.full((2,), 0.5), "b": torch.ones(2, 1), "c": torch.ones(1, 2), "d": torch.ones(1, 1)}
    values[name][0] = value
    with pytest.raises(InvalidSystemError, match=rf"^{name} has \d values that are NaN or infinite"):
        StateSpace(**values)


def test_other_invalid_systems_are_refused() -> None:
    a, b, c = torch.full((2,), 0.5), torch.ones(2, 1), torch.ones(1, 2)
    with pytest.raises(InvalidSystemError, match="sampling_time is -1"):
        StateSpace(a, b, c, sampling_time=-1)
    with pytest.raises(InvalidSystemError, match="log_a"):
        StateSpace(a, b, c, log_a=torch.zeros(3))
    with pytest.raises(InvalidSystemError, match="log_a"):
        StateSpace(torch.eye(2) / 2, b, c, log_a=torch.zeros(2))
    with pytest.raises(InvalidSystemError, match="d is complex"):
        StateSpace(a, b, c, torch.ones(1, 1) * 1j)
    with pytest.raises(InvalidSystemError, match="log_a has 1 values that are NaN"):
        StateSpace(a, b, c, log_a=torch.tensor([math.nan, 0.0]))
    with pytest.raises(ValueError):  # what a caller who does not know the library catches
        StateSpace(a, b, c, sampling_time=-1)
    with pytest.raises(CompressmError):
        StateSpace(a, b, c, sampling_time=-1)


@pytest.mark.parametrize("radius", [1.0, 1.5])
@pytest.mark.parametrize("dense", [False, True])
def test_an_unstable_system_is_named(radius: float, dense: bool) -> None:
    a = torch.tensor([0.5, -radius], dtype=torch.float64)
    system = StateSpace(torch.diag(a) if dense else a, normal(2, 1), normal(1, 2))
    assert not system.is_stable()
    with pytest.raises(UnstableSystemError, match=rf"blocks\.3: .*spectral radius is {radius:.9g}\."):
        system.require_stable("blocks.3")
    with pytest.raises(UnstableSystemError):
        gramian_factors(system)
    continuous = StateSpace(system.a, system.b, system.c, sampling_time=0.0)
    with pytest.raises(UnstableSystemError):
        gramian_factors(continuous)


def test_stability_is_judged_by_the_logarithm_where_a_rounds_to_one() -> None:
    log_a = torch.tensor([-1e-18 + 1j], dtype=torch.complex128)
    b, c = torch.ones(1, 1), torch.ones(1, 1)
    assert float(torch.exp(log_a).abs()) == 1
    assert StateSpace(torch.exp(log_a), b, c, log_a=log_a).is_stable()
    assert not StateSpace(torch.exp(log_a), b, c).is_stable()
    assert not StateSpace(torch.exp(-log_a), b, c, log_a=-log_a).is_stable()


def kinds_of_systems() -> list[StateSpace]:
    kinds = (PoleKind.RING, PoleKind.NEGATIVE, PoleKind.ZERO, PoleKind.FAST, PoleKind.REPEATED)
    return [
        build_diagonal(Recipe(kinds, 2, 3, 1, feedthrough=True)),
        build_diagonal(Recipe(kinds, 2, 3, 2, output="complex")),
        build_diagonal(Recipe(kinds[:2], 1, 1, 3, with_log=True)),
        build_dense(Recipe(kinds, 3, 2, 4, feedthrough=True, defects=frozenset({Defect.RESCALED}))),
        build_dense(Recipe(kinds, 3, 2, 5, output="complex")),
        # one matrix real and the others complex
        StateSpace(0.5 * normal(3, 3) / 3, normal(3, 2, dtype=torch.complex128), normal(2, 3)),
        StateSpace(0.2 * normal(3, 3), normal(3, 2), normal(2, 3, dtype=torch.complex128)),
        StateSpace(0.2 * normal(3, 3, dtype=torch.complex128), normal(3, 2), normal(2, 3), normal(2, 2)),
        StateSpace(0.2 * normal(3), normal(3, 2, dtype=torch.complex128), normal(2, 3), output="complex"),
    ]


@pytest.mark.parametrize("system", kinds_of_systems())
def test_three_descriptions_of_one_map_agree(system: StateSpace) -> None:
    """Markov parameters, simulation and frequency response."""
    length, m = 40, system.inputs
    markov = system.markov_parameters(length)
    impulse = torch.zeros(m, length, m, dtype=torch.float64)
    impulse[torch.arange(m), 0, torch.arange(m)] = 1
    response = system.simulate(impulse)  # (m, length, p)
    assert torch.allclose(response.permute(1, 2, 0), markov, rtol=1e-12, atol=1e-13)
    assert markov.is_complex() == (system.output == "complex" and system.is_complex)

    u = normal(4, length, m, seed=7)
    convolved = torch.stack(
        [
            sum(u[:, k - lag] @ markov[lag].mT.to(torch.complex128).real.double() for lag in range(k + 1))
            for k in range(9)
        ],
        1,
    )
    assert torch.allclose(system.simulate(u)[:, :9].to(torch.complex128).real, convolved, rtol=1e-11, atol=1e-11)

    if system.spectral_radius() < 0.97:
        long = system.markov_parameters(1200)
        omega = torch.tensor([-2.5, 0.0, 0.3, 3.0], dtype=torch.float64)
        phases = torch.exp(-1j * omega[:, None] * torch.arange(1200))
        transform = torch.einsum("fl,lpm->fpm", phases, long.to(torch.complex128))
        assert torch.allclose(system.frequency_response(omega), transform, rtol=1e-9, atol=1e-10)


def test_frequency_response_keeps_its_digits_near_a_slow_pole() -> None:
    gap = 1e-12
    log_a = torch.tensor([-gap + 0.5j], dtype=torch.complex128)
    one = torch.ones(1, 1, dtype=torch.complex128)
    system = StateSpace(torch.exp(log_a), one, one, output="complex", log_a=log_a)
    peak = float(system.frequency_response(torch.tensor([0.5], dtype=torch.float64)).abs())
    assert peak == pytest.approx(1 / gap, rel=1e-12)


def test_continuous_frequency_response() -> None:
    system = StateSpace(torch.tensor([-2.0]), torch.tensor([[3.0]]), torch.tensor([[5.0]]), sampling_time=0.0)
    found = system.frequency_response(torch.tensor([1.0]))
    assert complex(found.squeeze()) == pytest.approx(15 / (2 + 1j))


def test_discrete_descriptions_of_continuous_systems_are_refused() -> None:
    system = StateSpace(-torch.ones(2), normal(2, 1), normal(1, 2), sampling_time=0.0)
    with pytest.raises(InvalidSystemError, match="discretize"):
        system.markov_parameters(3)
    with pytest.raises(InvalidSystemError, match="length is 0"):
        ring_system(2, 1, 1).markov_parameters(0)


def test_to_double_keeps_the_map_and_drops_the_graph() -> None:
    system = StateSpace(*(t.to(torch.complex64) for t in (lambda s: (s.a, s.b, s.c))(ring_system(4, 2, 2))))
    system.b.requires_grad_()
    double = system.to_double()
    assert double.b.dtype == torch.complex128
    assert not double.b.requires_grad
    assert torch.allclose(double.markov_parameters(4), system.markov_parameters(4).double(), atol=1e-6)


@pytest.mark.parametrize(("n", "m", "p"), [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_empty_dimensions(n: int, m: int, p: int) -> None:
    system = StateSpace(torch.full((n,), 0.5), torch.ones(n, m), torch.ones(p, n))
    assert (system.order, system.inputs, system.outputs) == (n, m, p)
    assert system.is_stable()
    assert system.markov_parameters(3).shape == (3, p, m)
    assert system.frequency_response(torch.zeros(5)).shape == (5, p, m)
    assert system.simulate(torch.ones(2, 4, m)).shape == (2, 4, p)


def test_a_skip_of_each_channel_is_told_how_to_be_given() -> None:
    a, b, c = torch.full((4,), 0.5), torch.ones(4, 2), torch.ones(2, 4)
    with pytest.raises(InvalidSystemError, match=r"Wanted d .*= \(2, 2\); .* A factor for each channel is torch\.diag"):
        StateSpace(a, b, c, d=torch.ones(2))
    with pytest.raises(InvalidSystemError, match=r"d \(3,\)\.$"):
        StateSpace(a, b, c, d=torch.ones(3))
