"""Reduction of a bank whose systems share their matrices: one change of states for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from compressm.errors import UnsupportedReductionError
from compressm.linalg.balancing import numerical_rank
from compressm.linalg.gramians import GramianFactors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.lyapunov import compress_columns
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.reducers import Reducer
from compressm.reduction.result import ConjugateLinear, Reduction
from compressm.reduction.scaling import common_scale
from compressm.reduction.search import Notes
from compressm.reduction.weighting import Limits, Refusal, Weighting


def share(weighting: Weighting) -> Weighting:
    """One pair of Gramians for a bank, with their spectrum: the mean of P and the sum of Q over its systems.

    With these the error bound of balanced truncation holds for none of the systems.
    """
    p, q = (_side_by_side(t) for t in (weighting.factors.controllability, weighting.factors.observability))
    systems = weighting.factors.controllability.shape[0]
    factors = GramianFactors(p / systems**0.5, q, weighting.factors.frame)
    return replace(weighting, factors=factors, spectrum=hankel_spectrum(factors), shared=True)


def reduce_shared(
    system: StateSpace,
    weighting: Weighting,
    choice: OrderChoice,
    reducer: Reducer,
    limits: Limits,
    projected: Callable[[Tensor, Tensor], StateSpace],
) -> Reduction | Refusal:
    """Reduce a bank by one projection x' = W^T x, x ~ V x', to the largest stable order up to the choice.

    `projected(W^T, V)` is the bank that the layer then stores. It need not be the projected bank itself: a layer that
    projects continuous matrices samples them anew.
    """
    notes, bank = Notes(), weighting.flattened()
    first = system.with_batch(system.batch_shape.numel())[torch.zeros(1, dtype=torch.long)]
    limit = limits.largest_radius(system, weighting)
    for order in range(min(choice.states, numerical_rank(weighting.spectrum.values)), 0, -1):
        try:
            projection = reducer.reduce(first, bank.factors, bank.spectrum, order).projection
        except UnsupportedReductionError as error:
            notes.lines.append(str(error))
            continue
        restrict, embed = projection.w[0].mT.contiguous(), projection.v[0]
        c, c_small = (s.c.flatten(0, -2) for s in (system, projected(restrict, embed)))
        scale = common_scale(bank.factors.controllability[0], restrict, c, c_small)
        restrict, embed = scale * restrict, embed / scale
        small = projected(restrict, embed)
        radius = small.spectral_radius()
        if bool((radius < limit).all()):
            return Reduction(
                small,
                order,
                ConjugateLinear(restrict),
                ConjugateLinear(embed),
                None,
                1.0,
                weighting.controllability,
                weighting.observability,
                notes.fallbacks(),
            )
        reason = f"the reduced systems of {order} states have the spectral radius {float(radius.max()):.6g}"
        if not weighting.guarantees_stability:
            return Refusal(reason, unstable=True)
        notes.lines.append(reason)
    return Refusal("no order gave stable systems: " + notes.condensed())


def _side_by_side(factors: Tensor) -> Tensor:
    """A factor of the sum of L L* over the systems, for L `(H, k, l)`."""
    return compress_columns(factors.movedim(-3, -2).flatten(-2))
