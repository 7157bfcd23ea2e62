"""One reduction of one system or bank, with the checks that make it safe to store."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import numerical_ranks
from compressm.linalg.forms import Frame, strictly_causal
from compressm.linalg.modal import ModalBasis, modal_basis
from compressm.linalg.parallel import eigenvalues
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.lookahead import Lookahead
from compressm.reduction.reducers import Projected, Reducer
from compressm.reduction.result import ConjugateLinear, Reduction
from compressm.reduction.scaling import common_scale
from compressm.reduction.search import Attempt, Bank, Notes, search, stable_enough
from compressm.reduction.slots import StoredSystem, nothing, pad, pad_dense, store
from compressm.reduction.weighting import Limits, Refusal, Weighting

_ROOMY = 1.8  # balanced states a slot up to which real poles are likely to find room


def reduce_diagonal(
    system: StateSpace, weighting: Weighting, choice: OrderChoice, reducer: Reducer, limits: Limits
) -> Reduction | Refusal:
    """Reduce a system for a layer with diagonal complex states.

    Takes the largest order not above `choice.states` whose conjugate pairs and real poles fit `choice.slots` stored
    states and whose state matrix can be diagonalized within `limits.conditioning`. In a bank each system has its
    largest such order, and all get the stored states of the one that needs most.
    """
    bank, notes, ahead = Bank.of(system, weighting), Notes(), Lookahead(reducer)
    merge = weighting.factors.frame is Frame.REAL
    ranks = numerical_ranks(weighting.flattened().spectrum.values)

    def stored(part: Bank, projected: Projected, notes: Notes) -> Attempt[tuple[StoredSystem, Tensor]]:
        order = projected.system.order
        open_ = _not_refused(part, projected)
        tight = merge and order > _ROOMY * choice.slots
        if tight and bank.size == 1 and ahead.crowded(order, choice.slots):
            return Attempt(torch.zeros_like(open_))
        known = ahead.eigen(projected, tight) if bank.size == 1 else None
        if tight:
            poles = eigenvalues(projected.system.a) if known is None else known[0]
            stable, refusal = stable_enough(poles.abs().amax(-1), part, order, limits, notes)
            open_ &= stable & ((poles.imag >= 0).sum(-1) <= choice.slots)
            if refusal is not None or not bool(open_.any()):
                return Attempt(open_, refusal=refusal)
        index = open_.nonzero().flatten()
        part, projected = part.part(index), projected.part(index)
        basis = modal_basis(projected.system.a, merge, known)
        stable, refusal = stable_enough(basis.radius, part, order, limits, notes)
        fit = stable & _well_conditioned(basis, order, limits, notes) & (basis.counts <= choice.slots)
        accepted = torch.zeros_like(open_).index_put((index[fit],), torch.tensor(True))
        if refusal is not None or not bool(fit.any()):
            return Attempt(accepted, refusal=refusal)
        index = fit.nonzero().flatten()
        part, projected, basis = part.part(index), projected.part(index), basis[index]
        return Attempt(accepted, (store(part.system, projected, basis, weighting.factors.frame), basis.conditioning))

    found = search(bank, ranks, choice.states, reducer, stored, notes)
    if isinstance(found, Refusal):
        return found if found.unstable else replace(found, reason=f"no order could be diagonalized: {found.reason}")
    parts, conditioning = [(index, entry[0]) for index, entry in found], [float(e[1].max()) for _, e in found]
    empty = (ranks == 0).nonzero().flatten()
    if len(empty):
        rest = bank.part(empty).system
        parts.append((empty, nothing(rest, _feedthrough(rest, reducer))))
    slots = max(choice.slots if choice.exact else 0, *(s.system.order for _, s in parts), 1)
    whole = _joined([(index, pad(s, slots)) for index, s in parts])
    h, states = system.batch_shape, whole.real_orders
    return Reduction(
        whole.system.with_batch(*h),
        int(states.max()) if states.numel() else 0,
        _shaped(whole.restrict, h),
        _shaped(whole.embed, h),
        None,
        max(conditioning, default=1.0),
        weighting.controllability,
        weighting.observability,
        notes.fallbacks(),
        states=states.reshape(h),
    )


def reduce_dense(
    system: StateSpace, weighting: Weighting, choice: OrderChoice, reducer: Reducer, limits: Limits
) -> Reduction | Refusal:
    """Reduce a real system for a layer with a dense real state matrix, to the largest stable order up to the choice."""
    bank, notes = Bank.of(system, weighting), Notes()
    ranks = numerical_ranks(weighting.flattened().spectrum.values)
    if bool((ranks < choice.states).any()):
        notes.lines.append(f"numerical rank is {int(ranks.min())}: {choice.states} states cannot be told apart")

    def stored(part: Bank, projected: Projected, notes: Notes) -> Attempt[tuple[StateSpace, Tensor, Tensor]]:
        radius = projected.system.spectral_radius()
        stable, refusal = stable_enough(radius, part, projected.system.order, limits, notes)
        accepted = stable & _not_refused(part, projected)
        if refusal is not None or not bool(accepted.any()):
            return Attempt(accepted, refusal=refusal)
        small, restrict = projected.system[accepted], projected.projection.w[accepted].mT
        factor = part.whole.factors.controllability[part.index[accepted]]
        scale = common_scale(factor, restrict, part.system.c[accepted], small.c)[:, None, None]
        small = replace(small, b=scale * small.b, c=small.c / scale)
        return Attempt(accepted, (small, scale * restrict, projected.projection.v[accepted] / scale))

    found = search(bank, ranks, choice.states, reducer, stored, notes)
    if isinstance(found, Refusal):
        return found if found.unstable else replace(found, reason=f"no order gave a stable system: {found.reason}")
    parts = [(index, *entry) for index, entry in found]
    empty = (ranks == 0).nonzero().flatten()
    if len(empty):
        parts.append((empty, *_no_states(bank.part(empty).system, reducer)))
    states = torch.zeros(bank.size, dtype=torch.long)
    for index, small, _, _ in parts:
        states[index] = small.order
    slots = max(choice.slots if choice.exact else 0, *(small.order for _, small, _, _ in parts), 1)
    padded = [pad_dense(small, w, v, slots) for _, small, w, v in parts]
    places = torch.cat([index for index, _, _, _ in parts]).argsort()
    h = system.batch_shape
    small = _joined_systems([small for small, _, _ in padded])[places]
    w = ConjugateLinear(torch.cat([w for _, w, _ in padded])[places])
    v = ConjugateLinear(torch.cat([v for _, _, v in padded])[places])
    return Reduction(
        small.with_batch(*h),
        int(states.max()) if states.numel() else 0,
        _shaped(w, h),
        _shaped(v, h),
        None,
        1.0,
        weighting.controllability,
        weighting.observability,
        notes.fallbacks(),
        states=states.reshape(h),
    )


def require_feedthrough(reducer: Reducer, full_feedthrough: bool, name: str) -> None:
    """Raise UnsupportedReductionError where a reducer changes D and the layer has no full D."""
    if reducer.changes_feedthrough and not full_feedthrough:
        raise UnsupportedReductionError(
            f"{name}: {type(reducer).__name__} changes D to a full p x m matrix, which this layer cannot store: its "
            f"D is diagonal or absent. Use BalancedTruncation, or a layer with a full D."
        )


def _not_refused(part: Bank, projected: Projected) -> Tensor:
    return torch.ones(part.size, dtype=torch.bool) if projected.refused is None else ~projected.refused


def _well_conditioned(basis: ModalBasis, order: int, limits: Limits, notes: Notes) -> Tensor:
    sound = basis.conditioning <= limits.conditioning
    if not bool(sound.all()):
        worst = float(basis.conditioning.max())
        among = "" if len(sound) == 1 else f" in {int((~sound).sum())} systems"
        notes.lines.append(f"{order} states: eigenvectors too ill-conditioned ({worst:.1e}{among})")
    return sound


def _feedthrough(system: StateSpace, reducer: Reducer) -> Tensor | None:
    """D of the system without any state: for a reducer of the textbook form, h_0 = D + C B is all that is left."""
    return strictly_causal(system).d if reducer.changes_feedthrough else system.d


def _no_states(system: StateSpace, reducer: Reducer) -> tuple[StateSpace, Tensor, Tensor]:
    """A dense bank of which only D is left, with its empty maps."""
    h, m, p = system.batch_shape, system.inputs, system.outputs
    empty = torch.zeros(*h, 0, system.order, dtype=torch.float64)
    a, b, c = empty.new_zeros(*h, 0, 0), empty.new_zeros(*h, 0, m), empty.new_zeros(*h, p, 0)
    return replace(system, a=a, b=b, c=c, d=_feedthrough(system, reducer), log_a=None), empty, empty.mT


def _joined(parts: list[tuple[Tensor, StoredSystem]]) -> StoredSystem:
    """The parts of a bank, each with the indices of its systems, in order."""
    if len(parts) == 1:
        return parts[0][1]
    places = torch.cat([index for index, _ in parts]).argsort()
    stored = [s for _, s in parts]
    return StoredSystem(
        _joined_systems([s.system for s in stored])[places],
        _joined_maps([s.restrict for s in stored], places),
        _joined_maps([s.embed for s in stored], places),
        torch.cat([s.counts for s in stored])[places],
        torch.cat([s.real_orders for s in stored])[places],
    )


def _joined_systems(systems: list[StateSpace]) -> StateSpace:
    feeds = [s.d for s in systems if s.d is not None]
    return replace(
        systems[0],
        a=torch.cat([s.a for s in systems]),
        b=torch.cat([s.b for s in systems]),
        c=torch.cat([s.c for s in systems]),
        d=torch.cat(feeds) if feeds else None,
    )


def _joined_maps(maps: list[ConjugateLinear], places: Tensor) -> ConjugateLinear:
    linear = torch.cat([m.linear for m in maps])[places]
    if all(m.conjugate is None for m in maps):
        return ConjugateLinear(linear)
    others = [torch.zeros_like(m.linear) if m.conjugate is None else m.conjugate for m in maps]
    return ConjugateLinear(linear, torch.cat(others)[places])


def _shaped(transform: ConjugateLinear, h: torch.Size) -> ConjugateLinear:
    """The map with the batch dimensions `h` in place of one."""

    def shaped(t: Tensor) -> Tensor:
        return t.reshape(*h, *t.shape[1:])

    other = transform.conjugate
    return ConjugateLinear(shaped(transform.linear), None if other is None else shaped(other))
