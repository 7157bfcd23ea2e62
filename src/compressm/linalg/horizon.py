"""Sizes of systems over a number of steps, for those that forget nothing and have no other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace

_POINTS = 4  # frequencies for each step: the peak between two of them is at most 8 % higher than at one
_NUMBERS = 2**22  # numbers of the response that are held at once


class HorizonNorms(NamedTuple):
    """Of the impulse response h_0 .. h_{L-1}: the largest over a batch of systems."""

    gain: float
    energy: float


def horizon_norms(system: StateSpace, steps: int) -> HorizonNorms:
    """Norms of what a discrete system does in its first `steps` steps L.

    `energy` is sqrt(sum over l < L of |h_l|_F^2). `gain` is the largest singular value of sum over l < L of
    h_l e^{-iwl} over a grid of at least 4 L frequencies w. An input of up to L steps from a zero state is amplified by
    no more than the largest over all frequencies, since it is a product with the block Toeplitz matrix of these h_l.
    """
    h = system.markov_parameters(steps)
    energy = torch.linalg.vector_norm(h, dim=(-3, -2, -1))
    return HorizonNorms(_largest_gain(h), float(energy.max()) if energy.numel() else 0.0)


def _largest_gain(h: Tensor) -> float:
    """The largest gain on a grid of at least 4 L frequencies, few of which are held at once.

    With L <= k M the frequencies 2 pi (4 k q + r) / (4 k M), for one r, are a Fourier transform of length M of
    sum over j of h_{l + j M} e^{-2 pi i r (l + j M) / (4 k M)}.
    """
    steps = h.shape[-3]
    if h.numel() == 0:
        return 0.0
    folds = min(steps, -(-h.numel() // _NUMBERS))
    length = -(-steps // folds)
    classes, largest = _POINTS * folds, 0.0
    time = torch.arange(steps, dtype=torch.float64)[:, None, None]
    for r in range(classes if h.is_complex() else classes // 2 + 1):
        turn = torch.exp(time * (-2j * torch.pi * r / (classes * length)))
        folded = torch.zeros(*h.shape[:-3], length, *h.shape[-2:], dtype=turn.dtype)
        for part, phase in zip(h.split(length, -3), turn.split(length), strict=True):
            folded[..., : len(phase), :, :] += part * phase
        response = torch.fft.fft(folded, dim=-3)
        if min(h.shape[-2:]) > 1:
            gain = torch.linalg.matrix_norm(response, ord=2)
        else:
            gain = torch.linalg.vector_norm(response, dim=(-2, -1))
        largest = max(largest, float(gain.max()))
    return largest
