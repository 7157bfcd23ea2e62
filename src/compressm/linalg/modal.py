"""Diagonal form of a small dense system, with conjugate pairs merged into complex states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class ModalBasis:
    """Poles and eigenvectors of a dense matrix, A R = R diag(poles), one entry a stored state.

    For a real matrix whose conjugate pairs are merged, a pair is one entry (the pole with positive imaginary part) and
    a real pole is one entry with `is_real`. `right` `(k, s)`, `left` `(s, k)` are rows of the inverse;
    `conditioning` is the 2-norm condition number of all (unit) eigenvectors: how much rounding of the diagonal form
    is amplified.
    """

    poles: Tensor
    right: Tensor
    left: Tensor
    is_real: Tensor
    conditioning: float

    @property
    def slots(self) -> int:
        """The number of stored states."""
        return self.poles.shape[-1]


def modal_basis(a: Tensor, merge_pairs: bool) -> ModalBasis:
    """Diagonalize one dense matrix `(k, k)`; with `merge_pairs`, a real one, into stored complex states."""
    poles, right = torch.linalg.eig(a)
    conditioning = float(torch.linalg.cond(right)) if a.shape[-1] else 1.0
    if not conditioning < 1 / torch.finfo(torch.float64).eps:
        nothing = right.new_zeros(0, a.shape[-1])
        return ModalBasis(poles[:0], nothing.mT, nothing, torch.zeros(0, dtype=torch.bool), float("inf"))
    left = torch.linalg.inv(right)
    if not merge_pairs:
        return ModalBasis(poles, right, left, torch.zeros(poles.shape, dtype=torch.bool), conditioning)
    kept = poles.imag >= 0
    return ModalBasis(poles[kept], right[:, kept], left[kept], poles[kept].imag == 0, conditioning)


def state_scales(system: StateSpace, poles: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Positive scales for the states of a reduced diagonal system, so that its weights are sized like the layer's.

    A diagonal system leaves the size of each state free. The scale s (b -> s b, c -> c / s) is chosen so that the ratio
    of |b| / sqrt(1 - |pole|^2) (the state's standard deviation under white input) to |c| is the median one of `system`.
    """

    def sizes(poles: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        decay = (1 - poles.abs() ** 2).clamp_min(1e-12).sqrt()
        return torch.linalg.vector_norm(b, dim=-1) / decay, torch.linalg.vector_norm(c, dim=-2)

    b_full, c_full = sizes(system.a, system.b, system.c)
    b_size, c_size = sizes(poles, b, c)
    reference = b_full.median() / c_full.median() if c_full.numel() else b_full.new_ones(())
    squared = reference * c_size / b_size
    usable = torch.isfinite(squared) & (squared > 0)
    return torch.where(usable, squared, torch.ones_like(squared)).sqrt()
