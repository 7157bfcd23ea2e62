"""Discrete poles as the parameters of layers: logarithms, and continuous poles with a step size."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampling

SMALLEST_RADIUS = 1e-6
"""Where a layer stores the logarithm of a pole, one at 0 has no place: it is moved out to this radius, which changes
h_l by at most |c b| 1e-6 for l > 0."""

_LARGEST_LOG = math.log(1 - 2**-53)
_FASTEST = 40.0  # decay of a step beyond which poles count as equally near to 0

_logger = logging.getLogger(__name__)


def log_poles(system: StateSpace, layer: str, smallest: float = SMALLEST_RADIUS) -> Tensor:
    """log(pole) of a diagonal system, exact where the system knows it; poles nearer to 0 than `smallest` move out.

    `smallest` 0 leaves a pole at 0 with the logarithm -inf. The angles lie in (-pi, pi].
    """
    if system.log_a is not None:
        return system.log_a
    radius, angle = system.a.abs(), torch.angle(system.a)
    small = int((radius < smallest).sum())
    if small:
        _logger.info("%s: %d poles nearer to 0 than %g were moved out to it", layer, small, smallest)
    return torch.complex(torch.log(radius.clamp_min(smallest)).clamp_max(_LARGEST_LOG), angle)


def continuous_poles(system: StateSpace, step: Tensor, rule: Sampling, layer: str) -> tuple[Tensor, Tensor]:
    """Decay > 0 and frequency of the continuous poles that `compressm.ops.sampling.sample` turns into the system's.

    `step` broadcasts against the poles. Zero-order hold: s = log(pole) / dt, with poles at 0 moved out. Bilinear:
    s = 2 / dt (pole - 1) / (pole + 1), so that decay = 2 / dt (1 - |pole|^2) / |1 + pole|^2; every pole has a place.
    """
    if rule is Sampling.ZOH:
        log_pole = log_poles(system, layer)
        return -log_pole.real / step, log_pole.imag / step
    log_pole = log_poles(system, layer, 0.0)
    radius, angle = torch.exp(log_pole.real), log_pole.imag
    size = torch.expm1(log_pole.real).square() + 4 * radius * torch.cos(angle / 2).square()  # |1 + pole|^2
    scale = 2 / (step * size)
    return -torch.expm1(2 * log_pole.real) * scale, 2 * radius * torch.sin(angle) * scale


def nearest_poles(new: Tensor, old: Tensor) -> Tensor:
    """For each logarithm of a pole in `new` `(*h, r)` the index of the nearest in `old` `(*h, n)`.

    Near is alike in decay (as a ratio) and in angle.
    """

    def coordinates(log_pole: Tensor) -> tuple[Tensor, Tensor]:
        return torch.log((-log_pole.real).clamp(1e-300, _FASTEST)), log_pole.imag

    (new_decay, new_angle), (old_decay, old_angle) = coordinates(new), coordinates(old)
    turn = torch.remainder(new_angle.unsqueeze(-1) - old_angle.unsqueeze(-2) + math.pi, 2 * math.pi) - math.pi
    return ((new_decay.unsqueeze(-1) - old_decay.unsqueeze(-2)).square() + turn.square()).argmin(-1)
