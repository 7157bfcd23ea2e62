"""Sizes of systems over a number of steps, for those that forget nothing and have no other."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compressm.linalg.statespace import StateSpace

_POINTS = 4  # frequencies for each step: the peak between two of them is at most 8 % higher than at one


class HorizonNorms(NamedTuple):
    """Of the impulse response h_0 .. h_{L-1}: the largest over a batch of systems."""

    gain: float
    energy: float


def horizon_norms(system: StateSpace, steps: int) -> HorizonNorms:
    """Norms of what a discrete system does in its first `steps` steps L.

    `energy` is sqrt(sum over l < L of |h_l|_F^2). `gain` is the largest singular value of sum over l < L of
    h_l e^{-iwl} over a grid of 4 L frequencies w. An input of up to L steps from a zero state is amplified by no more
    than the largest over all frequencies, since it is a product with the block Toeplitz matrix of these h_l.
    """
    h = system.markov_parameters(steps)
    energy = h.abs().square().sum((-1, -2, -3)).sqrt()
    size = _POINTS * steps
    response = torch.fft.fft(h, size, dim=-3) if h.is_complex() else torch.fft.rfft(h, size, dim=-3)
    gain = response.abs().square().sum((-1, -2)).sqrt()
    if min(system.inputs, system.outputs) > 1:
        gain = torch.linalg.matrix_norm(response, ord=2)
    return HorizonNorms(*(float(t.max()) if t.numel() else 0.0 for t in (gain, energy)))
