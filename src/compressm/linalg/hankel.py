"""Hankel singular values and the singular vectors that balance a system."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.linalg.elementary import all_finite
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import GramianFactors, gramian_factors
from compressm.linalg.parallel import LARGEST_SHARED, in_pieces
from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class HankelSpectrum:
    """The singular value decomposition Lq* Lp = U diag(values) V* of the product of the Gramian factors.

    `values` `(*h, n)` are the Hankel singular values, sorted from the largest: sqrt(eig(P Q)) without squaring the
    condition number (Tombs and Postlethwaite 1987; Antoulas 2005, section 7.3). The vectors `(*h, m, n)` have no
    columns where they were not asked for.
    """

    values: Tensor
    left: Tensor
    right: Tensor

    def __getitem__(self, index: Tensor) -> HankelSpectrum:
        """The spectra of some systems of a bank."""
        return HankelSpectrum(self.values[index], self.left[index], self.right[index])


def hankel_spectrum(factors: GramianFactors, vectors: bool = True) -> HankelSpectrum:
    """Decompose Lq* Lp. Relative error about n eps sigma_1 / sigma_i; the values are never NaN.

    Without `vectors` there are the values only, in half of the time or less.
    Raises InvalidSystemError where a factor is not finite.
    """
    left, right = factors.observability, factors.controllability
    states, columns = left.shape[-1], right.shape[-1]
    decompose = partial(_decomposed, vectors)
    if right.shape[:-2].numel() < 2 or max(states, columns) > LARGEST_SHARED:
        return HankelSpectrum(*decompose(left, right))
    return HankelSpectrum(*in_pieces(decompose, states * columns, right.shape[:-2], left, right))


def _decomposed(vectors: bool, observability: Tensor, controllability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values, left and right vectors of the product."""
    product = observability.mH @ controllability
    if not all_finite(product):  # an entry of a factor that is not finite leaves its trace
        raise InvalidSystemError(
            "A Gramian factor has values that are NaN or infinite; the passes or weights it comes from are not sound."
        )
    if not vectors:
        values = _symmetric_values(product) if _is_symmetric(product) else torch.linalg.svdvals(product)
        return values, product[..., :0], product.mT[..., :0]
    if _is_symmetric(product):
        return _symmetric_spectrum(product)
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    return values, left, right.mH


def _is_symmetric(product: Tensor) -> bool:
    """Whether a real product equals its transpose up to round-off, as that of single-input single-output systems does.

    The Hankel operator of such a system is symmetric, and `kautz_factors` gives both factors in the same basis.
    """
    n = product.shape[-1]
    if product.is_complex() or product.shape[-2] != n:
        return False
    size, error = (torch.linalg.matrix_norm(t) for t in (product, product - product.mT))
    return bool((error <= n * torch.finfo(product.dtype).eps * size).all())


def _symmetric_values(product: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((product + product.mT) / 2).abs().sort(-1, descending=True).values


def _symmetric_spectrum(product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From X = V diag(l) V^T: the values |l|, the left vectors V sign(l)."""
    values, vectors = torch.linalg.eigh((product + product.mT) / 2)
    order = values.abs().argsort(-1, descending=True)
    values, vectors = values.gather(-1, order), torch.take_along_dim(vectors, order.unsqueeze(-2), -1)
    signs = torch.where(values < 0, -1.0, 1.0).to(values.dtype)
    return values.abs(), vectors * signs.unsqueeze(-2), vectors


def hankel_singular_values(system: StateSpace, frame: Frame = Frame.REAL, horizon: int | None = None) -> Tensor:
    """The Hankel singular values of a system under white input, `(*h, k)`, from the largest.

    For `Frame.REAL` and a complex system with real output k = 2n: the values of the real system it stands for.
    Raises UnstableSystemError where the infinite-horizon Gramians do not exist; give a `horizon` then.
    """
    return hankel_spectrum(gramian_factors(system, frame, horizon), vectors=False).values


def hankel_nuclear_norm(system: StateSpace, frame: Frame = Frame.REAL) -> Tensor:
    """The sum of the Hankel singular values `(*h,)`."""
    return hankel_singular_values(system, frame).sum(-1)
