"""How gradients and moments of real matrices follow a change of the states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressm.adapters.update import Pullback


def real_matrix_pullback(name: str, left: Tensor | None, right: Tensor | None) -> Pullback:
    """For a real matrix with X ~ left X' right: gradients follow as G' = left^T G right^T."""

    def covectors(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = old[name].double()
        g = g if left is None else left.mT @ g
        return {name: g if right is None else g @ right.mT}

    def variances(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        v = old[name]
        v = v if left is None else typical(v, 0, left.shape[-1])
        return {name: v if right is None else typical(v, 1, right.shape[-2])}

    return Pullback((name,), covectors, variances)


def typical(variances: Tensor, dim: int, size: int) -> Tensor:
    """The geometric mean over the states (along `dim`) of the positive second moments, for `size` new states.

    Second moments have no exact map. Of the rules tried (the variance of uncorrelated entries, the arithmetic mean, the
    leading entries, starting anew) this one trained best after a cut; see experiments/optimizer_policy.py.
    """
    v = variances.double()
    positive = v > 0
    logs = torch.where(positive, v, torch.ones_like(v)).log().sum(dim, keepdim=True)
    count = positive.sum(dim, keepdim=True)
    mean = torch.where(count > 0, (logs / count.clamp_min(1)).exp(), torch.zeros_like(logs))
    return mean.expand(*(size if d == dim else k for d, k in enumerate(v.shape))).clone()
