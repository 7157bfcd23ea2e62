"""Diagonal form of a small dense system, with conjugate pairs merged into complex states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.linalg.parallel import decompose
from compressm.linalg.statespace import StateSpace


@dataclass(frozen=True, eq=False)
class ModalBasis:
    """Poles and eigenvectors of dense matrices, A R = R diag(poles), one entry a stored state.

    For real matrices whose conjugate pairs are merged, a pair is one entry (the pole with positive imaginary part) and
    a real pole is one entry with `is_real`. `poles` is `(*h, s)`, `right` `(*h, k, s)`; `left` `(*h, s, k)` has rows of
    the inverse; `conditioning` `(*h,)` is the 2-norm condition number of all (unit) eigenvectors: how much rounding of
    the diagonal form is amplified. The first `counts` `(*h,)` entries of each matrix are its own; what is beyond them,
    where another matrix of the batch has more, is zero. `radius` `(*h,)` is the spectral radius.
    """

    poles: Tensor
    right: Tensor
    left: Tensor
    is_real: Tensor
    conditioning: Tensor
    counts: Tensor
    radius: Tensor

    def __getitem__(self, index: Tensor) -> ModalBasis:
        """The bases of some matrices of the batch, no wider than they need."""
        counts = self.counts[index]
        most = int(counts.max()) if counts.numel() else 0
        return ModalBasis(
            self.poles[index][..., :most],
            self.right[index][..., :most],
            self.left[index][..., :most, :],
            self.is_real[index][..., :most],
            self.conditioning[index],
            counts,
            self.radius[index],
        )

    @property
    def slots(self) -> int:
        """The number of stored states; the largest of the batch."""
        return self.poles.shape[-1]


def modal_basis(a: Tensor, merge_pairs: bool, known: tuple[Tensor, Tensor] | None = None) -> ModalBasis:
    """Diagonalize dense matrices `(*h, k, k)`; with `merge_pairs`, real ones, into stored complex states.

    A matrix that cannot be diagonalized has infinite `conditioning` and no entries. `known` are the eigenvalues and
    eigenvectors of `a`, where `torch.linalg.eig` has given them already.
    """
    if known is None:
        poles, right, left, conditioning = decompose(_eigenvectors, a)
    else:
        (poles, right), (left, conditioning) = known, _inverse(*known, paired=not a.is_complex())
    radius = poles.abs().amax(-1) if a.shape[-1] else conditioning.new_zeros(conditioning.shape)
    sound = torch.isfinite(conditioning)
    kept = sound.unsqueeze(-1) & ((poles.imag >= 0) if merge_pairs else torch.ones_like(poles.real, dtype=torch.bool))
    counts = kept.sum(-1)
    most = int(counts.max()) if counts.numel() else 0
    order = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]
    own = torch.arange(most) < counts.unsqueeze(-1)
    poles = torch.where(own, poles.gather(-1, order), 0)
    right = torch.where(own.unsqueeze(-2), torch.take_along_dim(right, order.unsqueeze(-2), -1), 0)
    left = torch.where(own.unsqueeze(-1), torch.take_along_dim(left, order.unsqueeze(-1), -2), 0)
    is_real = own & (poles.imag == 0) if merge_pairs else torch.zeros_like(own)
    return ModalBasis(poles, right, left, is_real, conditioning, counts, radius)


def _eigenvectors(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Poles, eigenvectors, their inverse and their condition number."""
    poles, right = torch.linalg.eig(a)
    return poles, right, *_inverse(poles, right, paired=not a.is_complex())


def _inverse(poles: Tensor, right: Tensor, paired: bool) -> tuple[Tensor, Tensor]:
    """The inverse of the eigenvectors and their condition number: infinite, and no inverse, from 1 / eps on.

    Those of a real matrix are `paired`, a pole with positive imaginary part before its conjugate: [v, conj v] is
    sqrt(2) [Re v, Im v] times a unitary matrix, so that a real matrix has the same singular values.
    """
    k, root = poles.shape[-1], 2**0.5
    first, second = poles.imag > 0, poles.imag < 0
    basis = right
    if paired:
        basis = torch.where(second.unsqueeze(-2), -right.imag, right.real)
        basis = torch.where((first | second).unsqueeze(-2), root * basis, basis)
    conditioning = poles.real.new_ones(poles.shape[:-1])
    if k:
        values = torch.linalg.svdvals(basis)
        conditioning = values[..., 0] / values[..., -1]
    sound = conditioning < 1 / torch.finfo(torch.float64).eps  # false for NaN
    left = torch.linalg.inv(torch.where(sound[..., None, None], basis, torch.eye(k, dtype=basis.dtype)))
    if paired:
        pair = torch.complex(left, -left.roll(-1, -2)) / root, torch.complex(left.roll(1, -2), left) / root
        left = torch.where(second.unsqueeze(-1), pair[1], left + 0j)
        left = torch.where(first.unsqueeze(-1), pair[0], left)
    return left, torch.where(sound, conditioning, torch.inf)


def state_scales(system: StateSpace, poles: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Positive scales for the states of a reduced diagonal system, so that its weights are sized like the layer's.

    A diagonal system leaves the size of each state free. The scale s (b -> s b, c -> c / s) is chosen so that the ratio
    of |b| / sqrt(1 - |pole|^2) (the state's standard deviation under white input) to |c| is the median one of `system`;
    1 where `system` is dense.
    """

    def sizes(poles: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        decay = (1 - poles.abs() ** 2).clamp_min(1e-12).sqrt()
        return torch.linalg.vector_norm(b, dim=-1) / decay, torch.linalg.vector_norm(c, dim=-2)

    b_size, c_size = sizes(poles, b, c)
    if system.order == 0 or c_size.numel() == 0:
        return torch.ones_like(b_size)
    reference = b_size.new_ones(())
    if system.is_diagonal:
        b_full, c_full = sizes(system.a, system.b, system.c)
        reference = (b_full.median(-1, keepdim=True).values) / c_full.median(-1, keepdim=True).values
    squared = reference * c_size / b_size
    usable = torch.isfinite(squared) & (squared > 0)
    return torch.where(usable, squared, torch.ones_like(squared)).sqrt()
