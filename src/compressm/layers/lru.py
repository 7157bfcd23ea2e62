"""The linear recurrent unit of Orvieto et al. 2023."""

from __future__ import annotations

import math
from math import inf

import torch
from torch import nn

from compressm.checks import require_number
from compressm.errors import ConfigError
from compressm.layers.base import check_size
from compressm.layers.diagonal import DiagonalLayer
from compressm.layers.systems import DiagonalSystem
from compressm.ops.precision import precise
from compressm.ops.remaking import Source, remember


class LRU(DiagonalLayer):
    """A diagonal complex recurrence with a real output (Orvieto et al. 2023, arXiv 2303.06349, eqs. 2, 6 and 7).

    x_k = lambda x_{k-1} + exp(gamma_log) (B_re + i B_im) u_k and y_k = Re((C_re + i C_im) x_k) + D u_k, with
    lambda = exp(-exp(nu_log) + i exp(theta_log)), which is stable for every value of the parameters.

    Parameters, all real: nu_log, theta_log, gamma_log (N,); B_re, B_im (N, H); C_re, C_im (H, N); D (H,).
    At the start |lambda|^2 is uniform on [r_min^2, r_max^2] and the phase on (0, max_phase] (Lemma 3.2), gamma is
    sqrt(1 - |lambda|^2) (section 3.4), and re and im of B are N(0, 1 / 2H), of C N(0, 1 / N), D N(0, 1).

    `width` H and `order` N are read off the parameters: resizing these in place is all it takes to change the order.

    Raises ConfigError for a width below 1, a negative order, or a ring that is not 0 <= r_min < r_max < 1.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = 2 * math.pi,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("LRU", width, order, generator)
        check_ring("LRU", r_min, r_max, max_phase)

        def normal(variance: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * math.sqrt(variance))

        radius = torch.rand(order, generator=generator, dtype=torch.float64)
        phase = 1 - torch.rand(order, generator=generator, dtype=torch.float64)  # (0, 1]: the logarithm exists
        nu = -0.5 * torch.log(radius * (r_max**2 - r_min**2) + r_min**2).clamp(min=-1e3)
        self.nu_log = nn.Parameter(torch.log(nu).float())
        self.theta_log = nn.Parameter(torch.log(max_phase * phase).float())
        self.gamma_log = nn.Parameter((0.5 * torch.log(-torch.expm1(-2 * nu))).float())
        self.B_re, self.B_im = normal(1 / (2 * width), order, width), normal(1 / (2 * width), order, width)
        self.C_re, self.C_im = normal(1 / max(order, 1), width, order), normal(1 / max(order, 1), width, order)
        self.D = normal(1.0, width)

    @property
    def order(self) -> int:
        """The number N of complex states."""
        return self.nu_log.shape[0]

    def system(self) -> DiagonalSystem:
        """The layer as it acts, with gamma in B."""
        nu, theta = precise(self.nu_log).exp(), precise(self.theta_log).exp()
        gamma = self.gamma_log.exp()[:, None]
        b_re, b_im = gamma * self.B_re, gamma * self.B_im
        remember(b_re, Source(self.B_re, None, gamma))
        remember(b_im, Source(self.B_im, None, gamma))
        return DiagonalSystem(nu, theta, b_re, b_im, self.C_re, self.C_im, self.D)


def check_ring(layer: str, r_min: float, r_max: float, max_phase: float) -> None:
    """Raise ConfigError unless the ring of initial poles lies inside the unit circle."""
    for name, value in (("r_min", r_min), ("r_max", r_max), ("max_phase", max_phase)):
        require_number(f"{layer}: {name}", value, -inf, wanted="a number")
    if not 0 <= r_min < r_max < 1:
        raise ConfigError(f"{layer}: r_min is {r_min} and r_max {r_max}; wanted 0 <= r_min < r_max < 1.")
    if not 0 < max_phase <= 2 * math.pi:
        raise ConfigError(f"{layer}: max_phase is {max_phase}; wanted more than 0 and at most 2 pi.")
