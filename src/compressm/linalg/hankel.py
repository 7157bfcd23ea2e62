"""Hankel singular values and the singular vectors that balance a system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import GramianFactors, gramian_factors
from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class HankelSpectrum:
    """The singular value decomposition Lq* Lp = U diag(values) V* of the product of the Gramian factors.

    `values` `(*h, n)` are the Hankel singular values, sorted from the largest: sqrt(eig(P Q)) without squaring the
    condition number (Tombs and Postlethwaite 1987; Antoulas 2005, section 7.3).
    """

    values: Tensor
    left: Tensor
    right: Tensor


def hankel_spectrum(factors: GramianFactors) -> HankelSpectrum:
    """Decompose Lq* Lp. Relative error about n eps sigma_1 / sigma_i; the values are never NaN.

    Raises InvalidSystemError where a factor is not finite.
    """
    if not all(bool(torch.isfinite(f).all()) for f in (factors.controllability, factors.observability)):
        raise InvalidSystemError(
            "A Gramian factor has values that are NaN or infinite; the passes or weights it comes from are not sound."
        )
    left, values, right = torch.linalg.svd(factors.observability.mH @ factors.controllability, full_matrices=False)
    return HankelSpectrum(values, left, right.mH)


def hankel_singular_values(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> Tensor:
    """The Hankel singular values of a system under white input, `(*h, k)`, from the largest.

    For `Frame.REAL` and a complex system with real output k = 2n: the values of the real system it stands for.
    Raises UnstableSystemError where the infinite-horizon Gramians do not exist; give a `horizon` then.
    """
    return hankel_spectrum(gramian_factors(system, frame, horizon)).values


def hankel_nuclear_norm(system: StateSpace, frame: Frame = Frame.REAL) -> Tensor:
    """The sum of the Hankel singular values `(*h,)`."""
    return hankel_singular_values(system, frame).sum(-1)
