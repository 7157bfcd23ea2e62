"""Initial poles of state space layers that remember the past: HiPPO-LegS and its diagonal simplifications."""

from __future__ import annotations

import math
from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor

from compressm.checks import require_number
from compressm.errors import ConfigError


class DiagonalInit(Enum):
    """The initial poles of a diagonal layer (Gu et al. 2022, arXiv 2206.11893, section 4)."""

    LEGS = "legs"  # eigenvalues of the normal part of HiPPO-LegS
    INV = "inv"  # -1/2 + i (n / pi) (n / (2 k + 1) - 1) with n real states: an approximation of LegS
    LIN = "lin"  # -1/2 + i pi k: a Fourier basis


def initial_poles(init: DiagonalInit, order: int) -> tuple[Tensor, Tensor]:
    """The decay 1/2 and the frequencies (N,) of `order` conjugate pairs, in float64: poles -decay + i frequency."""
    decay = torch.full((order,), 0.5, dtype=torch.float64)
    index = torch.arange(order, dtype=torch.float64)
    match init:
        case DiagonalInit.LEGS:
            return decay, normal_legs(order)[0].clone()
        case DiagonalInit.INV:
            states = 2 * order
            return decay, states / math.pi * (states / (2 * index + 1) - 1)
        case DiagonalInit.LIN:
            return decay, math.pi * index


def legs(states: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS: A (n, n), b (n,), and the rank-one p (n,) for which A + p p^T is normal; float64.

    A_ij = -sqrt((2i+1)(2j+1)) below the diagonal and -(i+1) on it, b_i = sqrt(2i+1), p_i = sqrt(i+1/2)
    (Gu et al. 2022, arXiv 2111.00396, eq. 2 and appendix C).
    """
    index = torch.arange(states, dtype=torch.float64)
    root = torch.sqrt(2 * index + 1)
    a = -(torch.outer(root, root).tril(-1) + torch.diag(index + 1))
    return a, root, torch.sqrt(index + 0.5)


@lru_cache(maxsize=8)
def diagonal_legs(states: int) -> tuple[Tensor, Tensor]:
    """Frequencies (n,), increasing, and orthonormal eigenvectors (n, n) of the normal part of LegS with n states.

    The normal part is A + p p^T = -I/2 + S with S skew; its poles -1/2 + i frequency come in conjugate pairs.
    """
    a, _, p = legs(states)
    skew = a + torch.outer(p, p) + torch.eye(states, dtype=torch.float64) / 2
    frequency, vectors = torch.linalg.eigh(skew * -1j)
    return frequency, vectors


def normal_legs(order: int) -> tuple[Tensor, Tensor]:
    """`diagonal_legs` of 2 N states, one of each conjugate pair: frequencies (N,) > 0, eigenvectors (2 N, N)."""
    frequency, vectors = diagonal_legs(2 * order)
    return frequency[order:].clone(), vectors[:, order:].clone()


def log_uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Logarithms of steps that are uniform between those of `low` and `high`."""
    return torch.rand(shape, generator=generator) * (math.log(high) - math.log(low)) + math.log(low)


def check_steps(layer: str, dt_min: float, dt_max: float) -> None:
    """Raise ConfigError unless the range of initial step sizes is positive."""
    for name, value in (("dt_min", dt_min), ("dt_max", dt_max)):
        require_number(f"{layer}: {name}", value, 0, above=True, wanted="a number above 0")
    if not 0 < dt_min <= dt_max < math.inf:
        raise ConfigError(f"{layer}: dt_min is {dt_min} and dt_max {dt_max}; wanted 0 < dt_min <= dt_max.")
