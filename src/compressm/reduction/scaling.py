"""The size of the states of a reduced system with dense matrices, which balancing leaves to the Gramians' units."""

from __future__ import annotations

import torch
from torch import Tensor


def common_scale(factor: Tensor, restrict: Tensor, c: Tensor, c_small: Tensor) -> Tensor:
    """One positive s for each system `(*h,)`: x' -> s x', and so B' -> s B', C' -> C' / s and A' as it is.

    In balanced coordinates states are as large as the two Gramians are alike: where one comes from gradients of a loss,
    B' can be a hundredth and C' a hundred times what they were. Their gradients differ as much, but not the steps of an
    optimizer that normalises them, and the layer becomes another one at the next step. With s the ratio of the states'
    standard deviation to the size of C is what it was: for P = L L^T with `factor` L `(*h, n, l)`, x' = `restrict` x
    `(*h, r, n)`, and the output weights `c` `(*h, p, n)`, `c_small` `(*h, p, r)`. 1 where one of them vanishes.
    """

    def ratio(states: Tensor, c: Tensor) -> Tensor:
        spread = states.square().sum((-1, -2)) / max(states.shape[-2], 1)
        return spread / (c.square().sum((-1, -2)) / max(c.shape[-1], 1))

    squared = (ratio(factor, c) / ratio(restrict @ factor, c_small)).sqrt()
    return torch.where(torch.isfinite(squared) & (squared > 0), squared, 1.0).sqrt()
