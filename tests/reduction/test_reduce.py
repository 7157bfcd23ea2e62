"""Reductions that step down, fall back or are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import BalancingMethod
from compressm.linalg.forms import Frame, realify
from compressm.linalg.gramians import GramianFactors, gramian_factors, moment_factor
from compressm.linalg.hankel import HankelSpectrum, hankel_spectrum
from compressm.linalg.norms import difference, error_bound, h2_norm, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.lookahead import Lookahead
from compressm.reduction.reduce import (
    reduce_dense,
    reduce_diagonal,
    require_feedthrough,
)
from compressm.reduction.reducers import BalancedTruncation, Projected, Reducer, SingularPerturbation
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.weighting import Limits, Refusal, Weighting
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, build_diagonal, ring_system

WHITE, DATA, LOSS = GramianSource.WHITE, GramianSource.DATA, GramianSource.LOSS


def white(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> Weighting:
    factors = gramian_factors(system, frame, horizon)
    return Weighting(factors, hankel_spectrum(factors), WHITE, WHITE, horizon)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def weighted(seed: int) -> tuple[StateSpace, Tensor, Tensor]:
    """A random LRU (N=32, H=4): P of a slow, coloured input, Q of a loss that looks at the mean of the output."""
    system = ring_system(32, 4, 4, seed=seed)
    real = realify(system)
    generator = torch.Generator().manual_seed(seed)
    states = StateSpace(real.a, real.b, torch.eye(64, dtype=torch.float64))
    p = moments(states, lowpass(normal(8, 100, 4, generator=generator)) @ normal(4, 4, generator=generator))
    costates = StateSpace(real.a.mT.contiguous(), real.c.mT.contiguous(), torch.eye(64, dtype=torch.float64))
    q = moments(costates, normal(2, 1, 4, generator=generator).expand(2, 100, 4))
    return system, p, q


def lowpass(u: Tensor) -> Tensor:
    total, outputs = torch.zeros_like(u[:, 0]), []
    for k in range(u.shape[1]):
        total = 0.999 * total + u[:, k]
        outputs.append(total)
    return torch.stack(outputs, 1)


def moments(system: StateSpace, u: Tensor) -> Tensor:
    x = system.simulate(u).reshape(-1, system.outputs)
    return x.mT @ x / len(x)


def test_two_sided_weighting_can_be_unstable_and_is_refused() -> None:
    """Data-weighted P with loss-weighted Q solves no Lyapunov equation; with one of them classical it is stable."""
    unstable = 0
    for seed in range(16):
        system, p, q = weighted(seed)
        classical = gramian_factors(system)
        loss = GramianFactors(moment_factor(p), moment_factor(q), Frame.REAL)
        both = Weighting(loss, hankel_spectrum(loss), DATA, LOSS)
        assert not both.guarantees_stability
        assert not both.is_white
        result = reduce_diagonal(system, both, OrderChoice(4, 4), BalancedTruncation(), Limits())
        direct = BalancedTruncation().reduce(realify(system), loss, both.spectrum, 4).system
        if not direct.is_stable():
            unstable += 1
            assert isinstance(result, Refusal)
            assert result.unstable
            assert "spectral radius" in result.reason
        one = GramianFactors(loss.controllability, classical.observability, Frame.REAL)
        sided = Weighting(one, hankel_spectrum(one), DATA, WHITE)
        assert sided.guarantees_stability
        assert not sided.is_white
        reduction = reduce_diagonal(system, sided, OrderChoice(4, 4), BalancedTruncation(), Limits())
        assert isinstance(reduction, Reduction)
        assert reduction.system.is_stable()
        assert (reduction.controllability, reduction.observability) == (DATA, WHITE)
        if unstable >= 2:
            return
    raise AssertionError("no unstable two-sided cut among 16: the refusal is not tested")


def test_slow_reduced_systems_are_refused_where_nothing_guarantees_stability() -> None:
    system = ring_system(12, 2, 2, largest=0.95)
    factors = gramian_factors(system)
    untrusted = Weighting(factors, hankel_spectrum(factors), DATA, LOSS)
    choice = OrderChoice(8, 8)
    assert isinstance(reduce_diagonal(system, untrusted, choice, BalancedTruncation(), Limits()), Reduction)
    strict = Limits(slowdown=0.2)  # five times faster than the layer's slowest pole
    refusal = reduce_diagonal(system, untrusted, choice, BalancedTruncation(), strict)
    assert isinstance(refusal, Refusal)
    assert refusal.unstable
    trusted = Weighting(factors, hankel_spectrum(factors), WHITE, WHITE)
    assert isinstance(reduce_diagonal(system, trusted, choice, BalancedTruncation(), strict), Reduction)


def test_a_finite_horizon_guarantees_nothing() -> None:
    weighting = white(ring_system(4, 2, 2), horizon=5)
    assert not weighting.guarantees_stability
    assert not weighting.is_white
    assert white(ring_system(4, 2, 2)).guarantees_stability
    assert white(ring_system(4, 2, 2)).is_white


def nearly_defective(order: int = 8) -> StateSpace:
    """A chain of equal first-order lags: every balanced truncation of it is close to defective."""
    a = 0.8 * torch.eye(order, dtype=torch.float64) + torch.diag(torch.full((order - 1,), 0.2).double(), -1)
    b, c = torch.zeros(order, 1, dtype=torch.float64), torch.zeros(1, order, dtype=torch.float64)
    b[0], c[0, -1] = 1, 1
    return StateSpace(a, b, c)


def close_poles() -> StateSpace:
    """The same as a diagonal system: poles 0.05 apart, and residues that nearly cancel (a finite difference)."""
    a = 0.5 + 0.05 * torch.arange(6, dtype=torch.float64)
    c = torch.tensor([[1.0, -5.0, 10.0, -10.0, 5.0, -1.0]], dtype=torch.complex128)
    return StateSpace(a + 0j, torch.ones(6, 1, dtype=torch.complex128), c)


def test_ill_conditioned_orders_are_stepped_down_and_told() -> None:
    system = close_poles()
    weighting = white(system)
    choice = OrderChoice(6, 6)
    loose = reduce_diagonal(system, weighting, choice, BalancedTruncation(), Limits(conditioning=1e14))
    strict = reduce_diagonal(system, weighting, choice, BalancedTruncation(), Limits(conditioning=1e3))
    assert isinstance(loose, Reduction)
    assert isinstance(strict, Reduction)
    assert strict.conditioning <= 1e3 < loose.conditioning
    assert strict.real_order < loose.real_order
    assert len(strict.fallbacks) == 1
    assert "ill-conditioned" in strict.fallbacks[0]
    assert "lower order" in strict.fallbacks[0]
    assert loose.fallbacks == ()
    bound = error_bound(weighting.spectrum.values, strict.real_order)
    assert hinf_norm(difference(system, strict.system)) <= bound * (1 + 1e-6) + 1e-9


def test_no_order_that_can_be_diagonalized_is_no_cut() -> None:
    system = close_poles()
    refusal = reduce_diagonal(system, white(system), OrderChoice(6, 6), BalancedTruncation(), Limits(conditioning=0.5))
    assert isinstance(refusal, Refusal)
    assert not refusal.unstable
    assert "ill-conditioned" in refusal.reason
    assert "more like it" in refusal.reason  # not one sentence an order


def test_a_dense_layer_needs_no_diagonal_form() -> None:
    system = nearly_defective()
    weighting = white(system)
    reduction = reduce_dense(system, weighting, OrderChoice(4, 4), BalancedTruncation(), Limits())
    assert isinstance(reduction, Reduction)
    assert reduction.order == 4
    assert hinf_norm(difference(system, reduction.system)) <= error_bound(weighting.spectrum.values, 4) * (1 + 1e-6)


class Unstable(Reducer):
    """A reducer whose results are unstable above three states, as round-off can make the last balanced states."""

    def reduce(self, system: StateSpace, factors: GramianFactors, spectrum: HankelSpectrum, states: int) -> Projected:
        projected = BalancedTruncation().reduce(system, factors, spectrum, states)
        if states <= 3:
            return projected
        return replace(projected, system=replace(projected.system, a=projected.system.a * 3))


@pytest.mark.parametrize("dense", [False, True])
def test_round_off_that_makes_a_guaranteed_order_unstable_is_stepped_down(dense: bool) -> None:
    system = realify(ring_system(4, 2, 2, smallest=0.95)) if dense else ring_system(4, 2, 2, smallest=0.95)
    method = reduce_dense if dense else reduce_diagonal
    reduction = method(system, white(system), OrderChoice(6, 6), Unstable(), Limits())
    assert isinstance(reduction, Reduction)
    assert reduction.real_order <= 3
    assert "spectral radius" in reduction.fallbacks[0]
    untrusted = replace(white(system), controllability=DATA, observability=LOSS)
    refusal = method(system, untrusted, OrderChoice(6, 6), Unstable(), Limits())
    assert isinstance(refusal, Refusal)
    assert refusal.unstable


def test_real_poles_take_a_slot_each() -> None:
    """A symmetric system has real poles at every order: two balanced states a slot would be right for pairs only."""
    b = torch.linspace(1, 2, 8, dtype=torch.float64).unsqueeze(-1) + 0j
    system = StateSpace(torch.linspace(0.1, 0.95, 8, dtype=torch.float64) + 0j, b, b.mT.contiguous())
    reduction = reduce_diagonal(system, white(system), OrderChoice(8, 4), BalancedTruncation(), Limits())
    assert isinstance(reduction, Reduction)
    assert reduction.order <= 4
    assert reduction.real_order == reduction.order


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [1, 2])
def test_orders_whose_real_poles_are_counted_are_those_that_decompositions_refuse(
    seed: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = ring_system(48, 4, 4, seed=seed, smallest=0.2, largest=0.97)
    weighting, before = white(system), torch.get_num_threads()

    def reduced() -> Reduction:
        found = reduce_diagonal(system, weighting, OrderChoice(48, 24), BalancedTruncation(), Limits())
        assert isinstance(found, Reduction)
        return found

    torch.set_num_threads(threads)
    try:
        counted = reduced()
        monkeypatch.setattr(Lookahead, "crowded", lambda *_: False)
        tried = reduced()
    finally:
        torch.set_num_threads(before)
    assert counted.real_order == tried.real_order < 48 and counted.order == tried.order
    assert torch.allclose(counted.system.a, tried.system.a, rtol=0, atol=1e-10)


def test_a_repeated_fixed_order_changes_nothing_the_second_time() -> None:
    system = ring_system(10, 2, 2)
    first = reduce_diagonal(system, white(system), OrderChoice(8, 4), BalancedTruncation(), Limits())
    assert isinstance(first, Reduction)
    second = reduce_diagonal(first.system, white(first.system), OrderChoice(8, 4), BalancedTruncation(), Limits())
    assert isinstance(second, Reduction)
    assert second.order == first.order
    assert hinf_norm(difference(first.system, second.system)) < 1e-9 * hinf_norm(first.system)


@pytest.mark.parametrize("method", list(BalancingMethod))
def test_dense_reduction_and_its_maps(method: BalancingMethod) -> None:
    system = build_dense(Recipe((PoleKind.RING,) * 6, 2, 3, 4, frozenset({Defect.RESCALED}), feedthrough=True))
    weighting = white(system)
    reduction = reduce_dense(system, weighting, OrderChoice(5, 5), BalancedTruncation(method), Limits())
    assert isinstance(reduction, Reduction)
    small = reduction.system
    assert (reduction.order, reduction.real_order, reduction.keep) == (5, 5, None)
    assert not small.is_complex
    assert torch.allclose(reduction.restrict(system.b), small.b)
    assert torch.allclose(reduction.embed.right(system.c), small.c)
    assert torch.allclose(reduction.restrict(reduction.embed(torch.eye(5).double())), torch.eye(5).double(), atol=1e-8)
    assert hinf_norm(difference(system, small)) <= error_bound(weighting.spectrum.values, 5) * (1 + 1e-6)


def test_dense_reduction_beyond_the_rank() -> None:
    system = realify(build_diagonal(Recipe((PoleKind.RING, PoleKind.REPEATED, PoleKind.REPEATED), 1, 1, 1)))
    reduction = reduce_dense(system, white(system), OrderChoice(5, 5), BalancedTruncation(), Limits())
    assert isinstance(reduction, Reduction)
    assert reduction.order == 2
    assert "numerical rank is 2" in reduction.fallbacks[0]
    padded = reduce_dense(system, white(system), OrderChoice(5, 5, exact=True), BalancedTruncation(), Limits())
    assert isinstance(padded, Reduction)
    assert (padded.order, padded.real_order) == (5, 2)
    assert padded.system.is_stable()
    assert hinf_norm(difference(reduction.system, padded.system)) < 1e-12
    assert padded.restrict.linear.shape == (5, 6)
    assert padded.embed.linear.shape == (6, 5)
    idle = padded.system.a.diagonal()[2:]
    assert len(set(idle.tolist())) == 3


@pytest.mark.parametrize("reducer", [BalancedTruncation(), SingularPerturbation()])
@pytest.mark.parametrize("dense", [False, True])
def test_a_system_of_one_instant_keeps_it(reducer: Reducer, dense: bool) -> None:
    """Poles at 0: h_0 = C B + D is all there is, and the textbook form has no states for it."""
    system = build_diagonal(Recipe((PoleKind.ZERO,) * 3, 2, 2, 1, feedthrough=True))
    system = realify(system) if dense else system
    balanced = reducer.balanced_system(system)
    factors = gramian_factors(balanced)
    weighting = Weighting(factors, hankel_spectrum(factors), WHITE, WHITE)
    result = (reduce_dense if dense else reduce_diagonal)(system, weighting, OrderChoice(4, 4), reducer, Limits())
    assert isinstance(result, Reduction)
    assert hinf_norm(difference(system, result.system)) < 1e-12
    assert result.order == (1 if isinstance(reducer, SingularPerturbation) else result.order)


def test_singular_perturbation_of_a_diagonal_system() -> None:
    system = build_diagonal(Recipe((PoleKind.RING,) * 8, 2, 2, 3))
    reducer = SingularPerturbation()
    factors = gramian_factors(reducer.balanced_system(system))
    spectrum = hankel_spectrum(factors)
    weighting = Weighting(factors, spectrum, WHITE, WHITE)
    reduction = reduce_diagonal(system, weighting, OrderChoice(8, 4), reducer, Limits())
    assert isinstance(reduction, Reduction)
    zero = torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(reduction.system.frequency_response(zero), system.frequency_response(zero), atol=1e-9)
    error = hinf_norm(difference(system, reduction.system))
    assert error <= error_bound(spectrum.values, reduction.real_order) * (1 + 1e-6)
    assert reduction.system.d is not None


def test_singular_perturbation_is_refused_by_layers_without_a_full_d() -> None:
    with pytest.raises(UnsupportedReductionError, match=r"blocks\.0: SingularPerturbation changes D to a full"):
        require_feedthrough(SingularPerturbation(), full_feedthrough=False, name="blocks.0")
    require_feedthrough(SingularPerturbation(), full_feedthrough=True, name="blocks.0")
    require_feedthrough(BalancedTruncation(), full_feedthrough=False, name="blocks.0")


def test_the_complex_frame_is_worse_for_a_real_output_at_equal_storage() -> None:
    """The reason why real-output balancing is the default."""
    errors = {}
    system = ring_system(128, 4, 4, seed=2)
    for frame, states in ((Frame.REAL, 64), (Frame.COMPLEX, 32)):
        reduction = reduce_diagonal(
            system, white(system, frame), OrderChoice(states, 32), BalancedTruncation(), Limits()
        )
        assert isinstance(reduction, Reduction)
        assert reduction.order <= 32
        errors[frame] = h2_norm(difference(system, reduction.system))
    assert errors[Frame.REAL] < 0.75 * errors[Frame.COMPLEX]
