"""What became of one layer: values, choice and reduction, and what of the values they discard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.linalg.norms import error_bound
from compressm.reduction.criteria import OrderChoice, significant_values
from compressm.reduction.fitting import Fitted
from compressm.reduction.result import Reduction
from compressm.reduction.weighting import Weighting


@dataclass(frozen=True)
class Decision:
    """What became of one layer: the values that decided, the choice, and the reduction if any.

    `values` are Hankel singular values, or the scores of a modal truncation; `(*h, k)` for a bank of systems.
    `discarded` is what a choice among the present states loses of their sum, `(*h,)`; None where that is the tail.
    `fitted` is what a fit to captured inputs made of the reduction, None where it changed nothing.
    """

    values: Tensor
    weighting: Weighting | None
    choice: OrderChoice | None
    reduction: Reduction | None
    fallbacks: tuple[str, ...]
    discarded: Tensor | None = None
    fitted: Fitted | None = None


def significant_tail(values: Tensor, states: Tensor | int) -> tuple[float, float]:
    """The discarded fraction of the sum of the values beyond `states`, and the bound 2 * tail.

    For a bank, `values` `(*h, k)` and `states` `(*h,)` or one number: the fraction of the sum over all systems, and the
    largest bound of any, which is the bound of the bank.
    """
    kept = significant_values(values)
    beyond = torch.arange(values.shape[-1]) >= torch.as_tensor(states).unsqueeze(-1)
    total = float(kept.sum())
    return (float((kept * beyond).sum()) / total if total > 0 else 0.0), error_bound(values, states)
