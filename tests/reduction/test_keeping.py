"""Choices of states with weights fitted anew, against least squares on the impulse response."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compressm.errors import ConfigError, UnsupportedReductionError
from compressm.linalg.forms import Frame, in_frame, realify
from compressm.linalg.gramians import dual, gramian_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.norms import difference, h2_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import tails
from compressm.reduction.keeping import BalancedKeepSets, BalancedSelection, balanced_scores
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.selection import ModalTruncation, SelectionRules, select_states
from compressm.reduction.weighting import Weighting
from compressm.testing.systems import PoleKind, Recipe, build_diagonal, ring_system, stack_systems, unstack_systems

FREE = SelectionRules(refit_outputs=True)


def weighting_of(system: StateSpace, horizon: int | None = None) -> Weighting:
    factors = gramian_factors(system, Frame.REAL, horizon)
    return Weighting(factors, hankel_spectrum(factors), GramianSource.WHITE, GramianSource.WHITE, horizon)


EXACT = BalancedSelection(disturbance=0.0)


def keep(system: StateSpace, slots: int, rules: SelectionRules = FREE, *, refit: bool = True) -> Reduction:
    return BalancedKeepSets(system, weighting_of(system), BalancedSelection(refit, 0.0), rules).reduction(slots)


def fitted_by_impulse_response(system: StateSpace, kept: Tensor, length: int = 600) -> float:
    """The least error |h - h'| over all output weights of the kept states, by dense least squares."""
    whole, part = system.markov_parameters(length), realify(select_states(system, kept))
    states = torch.stack([torch.linalg.matrix_power(part.a, k) @ part.b for k in range(length)])  # (L, r, m)
    rows, wanted = states.transpose(1, 2).flatten(0, 1), whole.transpose(1, 2).flatten(0, 1)
    solution = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
    return float((rows @ solution - wanted).norm())


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 3)])
def test_fitted_weights_are_the_best_for_the_kept_poles(inputs: int, outputs: int) -> None:
    system = ring_system(12, inputs, outputs, smallest=0.6, largest=0.97)
    reduction = keep(system, 5)
    error = h2_norm(difference(system, reduction.system))
    assert error == pytest.approx(fitted_by_impulse_response(system, reduction.keep), rel=1e-6)
    assert torch.equal(reduction.system.a, system.a[reduction.keep])
    assert torch.equal(reduction.system.b, system.b[reduction.keep])
    assert torch.allclose(reduction.embed.right(system.c), reduction.system.c)
    assert reduction.refitted and reduction.order == 5


@pytest.mark.parametrize("seed", range(5))
def test_fitting_and_choosing_by_the_fitted_error_pay(seed: int) -> None:
    system = ring_system(24, 2, 2, seed=seed)
    plain, fitted = keep(system, 8, refit=False), keep(system, 8)
    modal = select_states(system, ModalTruncation().kept_states(system, 8))
    errors = [h2_norm(difference(system, s)) for s in (fitted.system, plain.system, modal)]
    assert errors[0] < min(errors[1:])
    assert not plain.refitted
    assert torch.equal(plain.system.c, system.c[:, plain.keep])


def test_scores_do_not_depend_on_the_scale_of_states_and_bound_the_hankel_sum() -> None:
    system = ring_system(10, 2, 2)
    scale = torch.logspace(-3, 3, 10, dtype=torch.float64)
    scaled = replace(system, b=system.b * scale[:, None], c=system.c / scale)
    scores = balanced_scores(system, weighting_of(system))
    assert torch.allclose(scores, balanced_scores(scaled, weighting_of(scaled)))
    assert float(scores.sum()) >= float(weighting_of(system).spectrum.values.sum())


def test_input_weights_are_fitted_as_output_weights_of_the_dual() -> None:
    system = ring_system(10, 2, 3)
    rules = SelectionRules(refit_inputs=True)
    reduction, mirrored = keep(system, 4, rules), keep(dual(system), 4)
    assert torch.equal(reduction.keep, mirrored.keep)
    assert torch.allclose(reduction.system.b, mirrored.system.c.mH)
    assert torch.allclose(reduction.restrict(system.b), reduction.system.b)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_directions_are_kept_to(side: str) -> None:
    """c_i = gamma_i g_i with real gamma: what an oscillator's readout can store."""
    system = ring_system(12, 2, 3)
    g = torch.exp(1j * torch.arange(12, dtype=torch.float64))
    rules = SelectionRules(refit_outputs=True, output_direction=g)
    system = replace(system, c=system.c.real * g)
    if side == "inputs":
        system, rules = dual(system), SelectionRules(refit_inputs=True, input_direction=g.conj())
    reduction = keep(system, 4, rules)
    weights = reduction.system.c / g[reduction.keep] if side == "outputs" else reduction.system.b.mH / g[reduction.keep]
    assert float(weights.imag.abs().max()) < 1e-9 * float(weights.abs().max())
    plain = select_states(system, reduction.keep)
    assert h2_norm(difference(system, reduction.system)) < h2_norm(difference(system, plain))


def test_groups_of_a_dense_system_stay_together() -> None:
    """Oscillators as 2 x 2 blocks: both rows and columns go, and only the second state of each is read."""
    diagonal = ring_system(6, 2, 2)
    dense = realify(diagonal)
    order = torch.arange(12).reshape(2, 6).T.flatten()  # Re x_0, Im x_0, Re x_1, ...
    system = replace(dense, a=dense.a[order][:, order], b=dense.b[order], c=dense.c[:, order])
    direction = torch.tensor([0.0, 1.0] * 6, dtype=torch.float64)
    system = replace(system, c=system.c * direction)
    reduction = keep(system, 7, SelectionRules(group=2, refit_outputs=True, output_direction=direction))
    assert reduction.order == 6
    assert torch.equal(reduction.keep[1::2], reduction.keep[::2] + 1)
    assert bool((reduction.keep[::2] % 2 == 0).all())
    assert float(reduction.system.c[:, ::2].abs().max()) < 1e-12
    whole = keep(system, 12, SelectionRules(group=2, refit_outputs=True, output_direction=direction))
    assert h2_norm(difference(system, whole.system)) < 1e-9 * h2_norm(system)


@pytest.mark.parametrize("dense", [False, True])
def test_a_bank_is_as_its_systems(dense: bool) -> None:
    bank = stack_systems([ring_system(9, 1, 2, seed=i) for i in range(4)])
    bank = in_frame(bank, Frame.REAL) if dense else bank
    whole = keep(bank, 4)
    for i, system in enumerate(unstack_systems(bank)):
        one = keep(system, 4)
        assert torch.equal(whole.keep[i], one.keep)
        assert torch.allclose(whole.system.c[i], one.system.c)
        assert torch.allclose(whole.embed.linear[i], one.embed.linear)


def test_a_shared_choice_is_the_same_in_all_systems_of_a_bank() -> None:
    bank = stack_systems([ring_system(9, 1, 1, seed=i) for i in range(4)])
    for rules in (SelectionRules(shared=True, refit_outputs=True), SelectionRules(shared=True)):
        reduction = keep(bank, 4, rules)
        assert reduction.keep.shape == (4,)
        assert reduction.system.order == 4
    own, shared = keep(bank, 4), keep(bank, 4, SelectionRules(shared=True, refit_outputs=True))
    assert h2_norm(difference(bank, own.system)) <= h2_norm(difference(bank, shared.system)) * 1.2


def test_real_and_repeated_poles_do_not_make_weights_huge() -> None:
    kinds = (PoleKind.POSITIVE, PoleKind.REPEATED, PoleKind.RING, PoleKind.REPEATED, PoleKind.NEGATIVE, PoleKind.RING)
    for seed in range(5):
        system = build_diagonal(Recipe(kinds, 1, 1, seed))
        system = replace(system, b=torch.where(system.a.unsqueeze(-1).imag == 0, system.b.real + 0j, system.b))
        reduction = keep(system, 4)
        assert float(reduction.system.c.abs().max()) < 1e4 * float(system.c.abs().max())
        assert h2_norm(difference(system, reduction.system)) <= h2_norm(system) * (1 + 1e-6)


def test_undamped_poles_need_a_horizon_only() -> None:
    angles = torch.tensor([0.1, 0.5, 1.0, 2.0, 2.9], dtype=torch.float64)
    system = replace(ring_system(5, 1, 1), a=torch.exp(1j * angles), log_a=1j * angles)
    weighting = weighting_of(system, 200)
    reduction = BalancedKeepSets(system, weighting, EXACT, FREE).reduction(3)
    plain = select_states(system, reduction.keep)
    whole = system.markov_parameters(200)
    errors = [float((whole - s.markov_parameters(200)).norm()) for s in (reduction.system, plain)]
    assert errors[0] < errors[1]


def test_the_complex_frame_is_refused() -> None:
    system = ring_system(4, 1, 1)
    factors = gramian_factors(system, Frame.COMPLEX)
    weighting = Weighting(factors, hankel_spectrum(factors), GramianSource.WHITE, GramianSource.WHITE)
    with pytest.raises(UnsupportedReductionError, match="real frame"):
        BalancedKeepSets(system, weighting, EXACT, FREE)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("reducer", [EXACT, BalancedSelection()])
def test_what_is_discarded_is_what_the_best_estimate_leaves(
    reducer: BalancedSelection, shared: bool, real: bool
) -> None:
    """By definition, from the maps of the reduction and both Gramian factors."""
    bank = stack_systems([ring_system(7, 1, 2, seed=i) for i in range(3)])
    if real:  # Im x of a real pole is zero
        poles, b = bank.a.clone(), bank.b.clone()
        poles[:, 2], b[:, 2] = poles[:, 2].abs() + 0j, 1.0
        bank = replace(bank, a=poles, b=b, log_a=poles.log())
    weighting = weighting_of(bank)
    sets = BalancedKeepSets(bank, weighting, reducer, SelectionRules(shared=shared, refit_outputs=True))
    p, q = weighting.factors.controllability, weighting.factors.observability
    sums = []
    for slots in range(1, 7):
        reduction = sets.reduction(slots)
        estimate = reduction.embed(reduction.restrict(torch.complex(p[:, :7], p[:, 7:])))
        lost = q.mT @ (p - torch.cat([estimate.real, estimate.imag], 1))
        wanted = torch.linalg.svdvals(lost).sum(-1)
        assert torch.allclose(sets.discarded(slots), wanted, rtol=1e-6, atol=1e-9 * float(sets.values.max()))
        assert bool((wanted >= tails(sets.values)[:, 2 * slots] * (1 - 1e-9)).all())
        sums.append(sets.discarded(slots))
    if reducer is EXACT:
        assert float(torch.stack(sums).diff(dim=0).max()) < 1e-9


def test_a_choice_for_many_channels_does_not_depend_on_threads() -> None:
    bank = stack_systems([ring_system(12, 1, 1, smallest=0.5, largest=0.97, seed=i) for i in range(40)])
    rules, threads = SelectionRules(shared=True, refit_outputs=True), torch.get_num_threads()
    whole = BalancedKeepSets(bank, weighting_of(bank), EXACT, rules)
    found = whole.reduction(5), whole.discarded(5)
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = BalancedKeepSets(bank, weighting_of(bank), EXACT, rules)
        assert torch.equal(again.reduction(5).keep, found[0].keep)
        assert torch.allclose(again.reduction(5).system.c, found[0].system.c, rtol=1e-12)
        assert torch.allclose(again.discarded(5), found[1], rtol=1e-12)
    finally:
        torch.set_num_threads(threads)
    for i, system in enumerate(unstack_systems(bank)[:3]):
        kept = fitted_by_impulse_response(system, found[0].keep)
        error = h2_norm(difference(system, unstack_systems(found[0].system)[i]))
        assert error == pytest.approx(kept, rel=1e-6)


def test_weights_of_states_that_nearly_span_others_stay_in_size() -> None:
    """Slow poles over a short horizon, as in a channel with a small step: exact fits cancel, disturbed ones do not."""
    log_a = 1e-2 * torch.complex(torch.full((12,), -0.3, dtype=torch.float64), torch.arange(12).double())
    system = replace(ring_system(12, 1, 1), a=log_a.exp(), log_a=log_a, b=torch.ones(12, 1, dtype=torch.complex128))
    weighting, whole = weighting_of(system, 64), system.markov_parameters(64)
    found = {}
    for disturbance in (0.0, 0.03):
        sets = BalancedKeepSets(system, weighting, BalancedSelection(True, disturbance), FREE)
        small = sets.reduction(4).system
        assert torch.allclose(small.c, sets.reduced(4).c)
        log_a = small.log_a + 1e-3 * torch.arange(4)  # as a step of training moves poles
        moved = replace(small, a=log_a.exp(), log_a=log_a)
        errors = [float((whole - s.markov_parameters(64)).norm() / whole.norm()) for s in (small, moved)]
        found[disturbance] = float(small.c.abs().max() / system.c.abs().max()), *errors
    assert found[0.0][0] > 100 and found[0.03][0] < 3
    assert found[0.0][1] < found[0.03][1] < 0.02
    assert found[0.0][2] > 1 and found[0.03][2] < 0.2


def test_a_disturbed_fit_is_ridge_regression_towards_the_present_weights() -> None:
    system, disturbance = ring_system(7, 1, 2), 0.3
    weighting = weighting_of(system)
    reduction = BalancedKeepSets(system, weighting, BalancedSelection(True, disturbance), FREE).reduction(3)
    real = realify(system)
    p = weighting.factors.controllability @ weighting.factors.controllability.mT
    kept = torch.cat([reduction.keep, reduction.keep + 7])
    ridge = disturbance**2 * p.diagonal()[kept].diag()
    wanted = torch.linalg.solve(p[kept][:, kept] + ridge, (real.c @ p[:, kept] + real.c[:, kept] @ ridge).mT).mT
    assert torch.allclose(realify(reduction.system).c, wanted, rtol=1e-9, atol=1e-12)


def test_states_that_contribute_nothing_leave_the_others_their_weights() -> None:
    system = ring_system(6, 2, 2)
    system = replace(system, c=system.c * torch.tensor([1.0, 0, 1, 1, 0, 1]))
    reduction = BalancedKeepSets(system, weighting_of(system), BalancedSelection(), FREE).reduction(4)
    assert reduction.keep.tolist() == [0, 2, 3, 5]
    assert torch.allclose(reduction.system.c, system.c[:, reduction.keep])


@pytest.mark.parametrize("value", [-0.1, float("nan"), True, "0.1"])
def test_a_disturbance_is_a_part_of_a_size(value: object) -> None:
    with pytest.raises(ConfigError, match="disturbance"):
        BalancedSelection(True, value)
