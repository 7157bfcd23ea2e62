"""From a continuous diagonal system with a step size to a discrete one."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from compressm.ops.precision import precise

_TINY = 1e-60  # keeps derivatives finite where a pole falls on 0


class Sampling(Enum):
    """How a continuous system becomes a discrete one."""

    ZOH = "zoh"  # input held over the step: pole e^{s dt}, gain (e^{s dt} - 1) / s
    BILINEAR = "bilinear"  # trapezoidal rule: pole (1 + s dt / 2) / (1 - s dt / 2), gain dt / (1 - s dt / 2)


class Sampled(NamedTuple):
    """Poles exp(-nu + i theta) and the complex gains of the inputs, in float64 where the device has it."""

    nu: Tensor
    theta: Tensor
    gain_re: Tensor
    gain_im: Tensor


def sample(decay: Tensor, frequency: Tensor, step: Tensor, rule: Sampling) -> Sampled:
    """The discrete poles and input gains of s = -decay + i frequency with decay > 0, for any shapes that broadcast.

    x' = s x + b u becomes x_k = pole x_{k-1} + gain b u_k. Every stable s gives a stable pole, whatever the step.
    The logarithms of the poles are exact to rounding however near they are to the unit circle.
    """
    decay, frequency, step = precise(decay), precise(frequency), precise(step)
    if rule is Sampling.ZOH:
        nu, theta = decay * step, frequency * step
        shrink = torch.exp(-nu)
        re = torch.expm1(-nu) * torch.cos(theta) - 2 * torch.sin(theta / 2).square()  # e^{s dt} - 1
        im = shrink * torch.sin(theta)
        size = decay.square() + frequency.square()
        return Sampled(nu, theta, (im * frequency - re * decay) / size, -(re * frequency + im * decay) / size)
    half_decay, half_turn = decay * step / 2, frequency * step / 2
    near = (1 - half_decay).square() + half_turn.square()
    size = (1 + half_decay).square() + half_turn.square()
    nu = 0.5 * torch.log1p(4 * half_decay / near.clamp(min=_TINY))
    theta = torch.atan2(half_turn, 1 - half_decay) + torch.atan2(half_turn, 1 + half_decay)
    return Sampled(nu, theta, step * (1 + half_decay) / size, step * half_turn / size)
