"""Choosing among the present states by what balancing knows of them, with weights fitted anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.errors import UnsupportedReductionError
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import ConjugateLinear, Reduction
from compressm.reduction.selection import SelectionRules, select_states
from compressm.reduction.weighting import Weighting

_RCOND = 1e-7  # of the fit: combinations of kept states that hardly move are not used, lest weights become huge


@dataclass(frozen=True)
class BalancedSelection:
    """Keep some of the present states, chosen under the same Gramians that would balance the layer.

    For layers that cannot store a general change of states (oscillators, poles shared by channels). Where the layer
    allows it (`SelectionRules`) the output weights of the kept states are fitted anew: with the state covariance P, and
    rows K of the kept states, C' = C P K^T (K P K^T)^{-1} minimises the mean squared error of the output, which for the
    classical P is the H2 error for those poles and that B. States are taken one after the other, each time the one that
    lowers the fitted error most (orthogonal matching pursuit, Pati et al. 1993). Where only B may change, all this is
    done to the dual system. Where neither may, or without `refit`, the states with the largest sqrt(P_ii Q_ii) stay
    as they are.
    """

    refit: bool = True


def balanced_scores(system: StateSpace, weighting: Weighting) -> Tensor:
    """sqrt(P_ii Q_ii) of each state `(*h, n)`, summed over its real and imaginary part in the real frame.

    Invariant under a diagonal scaling of the states, and their sum is no smaller than that of the Hankel singular
    values.
    """
    p, q = (
        torch.linalg.vector_norm(f, dim=-1)
        for f in (weighting.factors.controllability, weighting.factors.observability)
    )
    return _by_state(p * q, system.order)


def reduce_by_balanced_selection(
    system: StateSpace, weighting: Weighting, slots: int, reducer: BalancedSelection, rules: SelectionRules
) -> Reduction:
    """The system with about `slots` of its states, by whole groups, `rules.shared` the same ones in all of a bank."""
    if weighting.factors.frame is not Frame.REAL:
        raise UnsupportedReductionError("States are selected by balanced scores in the real frame; use Balancing.REAL.")
    outputs = reducer.refit and rules.refit_outputs
    inputs = reducer.refit and rules.refit_inputs and not outputs
    count, dense = rules.groups_within(slots), in_frame(system, Frame.REAL)
    factor, regressors, seen = weighting.factors.controllability, _regressors(system, rules), dense.c
    if inputs:
        factor, regressors, seen = weighting.factors.observability, _co_regressors(system, rules), dense.b.mT
    if outputs or inputs:
        groups = _greedy(seen @ factor, regressors @ factor.unsqueeze(-3), count, rules.shared)
    else:
        scores = rules.grouped(balanced_scores(system, weighting))
        groups = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    keep = rules.states_of(groups)
    h, n = system.batch_shape, system.order
    rows = torch.eye(n, dtype=torch.complex128)[keep.expand(*h, keep.shape[-1])]
    restrict, embed = ConjugateLinear(rows), ConjugateLinear(rows.mT.clone())
    small = select_states(system, keep)
    if outputs:
        embed = _between_states(_fitted(factor, regressors, groups, keep, system), system)
        small = replace(small, c=_like(embed.right(system.c.to(torch.complex128)), small.c))
    elif inputs:
        restrict = _between_states(_fitted(factor, regressors, groups, keep, system).mT, system)
        small = replace(small, b=_like(restrict(system.b.to(torch.complex128)), small.b))
    per = 2 if system.is_complex and system.output == "real" else 1
    sources = weighting.controllability, weighting.observability
    return Reduction(small, keep.shape[-1] * per, restrict, embed, keep, 1.0, *sources, refitted=outputs or inputs)


def _greedy(target: Tensor, bases: Tensor, count: int, shared: bool) -> Tensor:
    """Groups `(k,)` or `(*h, k)` whose rows span most of `target`, one at a time (orthogonal matching pursuit).

    `target` `(*h, p, l)`; `bases` `(*h, G, q, l)`, the q rows that group g adds. After each choice the rows chosen are
    projected out of all others, so that the gain of a group is what it adds to those before it.
    """
    h = target.shape[:-2]
    bases = bases.expand(*h, *bases.shape[-3:]).clone()
    sizes = torch.linalg.vector_norm(bases, dim=(-1, -2))
    taken = torch.zeros(*h, bases.shape[-3], dtype=torch.bool)
    whole = target.square().sum((-1, -2)).clamp_min(torch.finfo(target.dtype).tiny)
    chosen: list[Tensor] = []
    for _ in range(count):
        rows = _orthonormal(bases, sizes)
        gains = (target.unsqueeze(-3) @ rows.mT).square().sum((-1, -2)).masked_fill(taken, -1.0)
        if shared and h:
            gains = (gains / whole.unsqueeze(-1)).flatten(0, -2).sum(0)
        best = gains.argmax(-1, keepdim=True)
        chosen.append(best)
        best = best.expand(*h, 1)
        taken = taken.scatter(-1, best, True)
        row = torch.take_along_dim(rows, best[..., None, None], -3).squeeze(-3)  # (*h, q, l)
        target = target - (target @ row.mT) @ row
        bases = bases - (bases @ row.mT.unsqueeze(-3)) @ row.unsqueeze(-3)
    return torch.cat(chosen, -1)


def _orthonormal(bases: Tensor, sizes: Tensor) -> Tensor:
    """An orthonormal basis of the one or two rows of each group, zero for a row that what was chosen spans already."""
    floor = _RCOND * sizes[..., None]
    first = bases[..., 0, :]
    rows = [_unit(first, floor)]
    for k in range(1, bases.shape[-2]):
        row = bases[..., k, :]
        for _ in range(2):  # once more: what is nearly parallel keeps no digit the first time
            for earlier in rows:
                row = row - (row * earlier).sum(-1, keepdim=True) * earlier
        rows.append(_unit(row, floor))
    return torch.stack(rows, -2)


def _unit(row: Tensor, floor: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(length > floor, row / length.clamp_min(torch.finfo(row.dtype).tiny), torch.zeros_like(row))


def _regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """The real functions of the states that a group's output weights multiply, `(*h, G, q, k)` in the real frame.

    Without a direction Re x and Im x of each of its states; with one the sum of Re(direction_i x_i) over the group.
    """
    return _functions(system, rules.output_direction, rules.group)


def _co_regressors(system: StateSpace, rules: SelectionRules) -> Tensor:
    """As `_regressors` for input weights: the b_i = direction_i beta of a group act on Re x_i and Im x_i together."""
    direction = rules.input_direction
    return _functions(system, None if direction is None else direction.conj(), rules.group)


def _functions(system: StateSpace, direction: Tensor | None, group: int) -> Tensor:
    n, pairs = system.order, system.is_complex
    eye = torch.eye(2 * n if pairs else n, dtype=torch.float64)
    if direction is None:
        rows = eye.reshape(2 if pairs else 1, n // group, group, -1).transpose(0, 1)
        return rows.reshape(n // group, -1, eye.shape[-1])
    parts = eye[:n] * direction.real.unsqueeze(-1)
    if pairs and direction.is_complex():
        parts = parts - eye[n:] * direction.imag.unsqueeze(-1)
    return parts.unflatten(-2, (n // group, group)).sum(-2, keepdim=True)


def _fitted(factor: Tensor, regressors: Tensor, groups: Tensor, keep: Tensor, system: StateSpace) -> Tensor:
    """M `(*h, k, r)` in the real frame with x ~ M x', the best for second moments F F^T, through what may be fitted.

    With rows R of the kept groups, M = F F^T R^T (R F F^T R^T)^+ R S, S the columns of the kept states.
    """
    h = system.batch_shape
    chosen = groups.sort(-1).values.expand(*h, -1)[..., None, None]
    picked = torch.take_along_dim(regressors.expand(*h, *regressors.shape[-3:]), chosen, -3)
    moved = picked @ factor.unsqueeze(-3)  # (*h, k, q, l)
    sizes = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    still = sizes <= _RCOND * torch.linalg.vector_norm(sizes, dim=-2, keepdim=True)  # Im x of a real pole, say
    scale = torch.where(still, torch.inf, sizes)
    inverse = torch.linalg.pinv((moved / scale).flatten(-3, -2), rtol=_RCOND)  # (*h, l, k q)
    kept = keep.expand(*h, -1)
    columns = torch.cat([kept, kept + system.order], -1) if system.is_complex else kept
    own = torch.take_along_dim((picked / scale).flatten(-3, -2), columns.unsqueeze(-2), -1)
    return (factor @ inverse) @ own


def _between_states(matrix: Tensor, system: StateSpace) -> ConjugateLinear:
    """The map of complex states that a real matrix between their [Re x; Im x] stands for."""
    if not system.is_complex:
        return ConjugateLinear(matrix.to(torch.complex128))
    rows, half = matrix.shape[-2] // 2, matrix.shape[-1] // 2
    complex_rows = torch.complex(matrix[..., :rows, :], matrix[..., rows:, :])
    of_re, of_im = complex_rows[..., :half], complex_rows[..., half:]
    return ConjugateLinear((of_re - 1j * of_im) / 2, (of_re + 1j * of_im) / 2)


def _like(value: Tensor, old: Tensor) -> Tensor:
    return value if old.is_complex() else value.real


def _by_state(values: Tensor, order: int) -> Tensor:
    """Values of the real frame summed over the parts of each state."""
    return values.unflatten(-1, (-1, order)).sum(-2)
