"""A real layer whose state matrix consists of 2 x 2 rotations, scaled."""

from __future__ import annotations

import math

import torch
from torch import nn

from compressm.layers.base import check_size
from compressm.layers.diagonal import DiagonalLayer
from compressm.layers.lru import check_ring
from compressm.layers.systems import DiagonalSystem
from compressm.ops.precision import precise


class RotationSSM(DiagonalLayer):
    """x_k = A x_{k-1} + B u_k and y_k = C x_k + D u_k, all real, with A block diagonal (arXiv 2510.22951, section 3).

    Block i is rho [[cos theta, -sin theta], [sin theta, cos theta]] with rho = exp(-exp(nu_log)), stable for every
    value of the parameters. B_1, B_2 are the rows of B, C_1, C_2 the columns of C, that belong to the first and to the
    second state of the blocks. With z = x_1 + i x_2 a block is z_k = rho e^{i theta} z_{k-1} + (B_1 + i B_2) u_k and
    its output Re((C_1 - i C_2) z_k): the layer is a diagonal complex system in real coordinates, and runs as one.

    Parameters: nu_log, theta (N,); B_1, B_2 (N, H); C_1, C_2 (H, N); D (H,). At the start the poles are those of the
    LRU's ring (rho^2 uniform on [r_min^2, r_max^2], theta uniform on [0, max_phase)), B is N(0, (1 - rho^2) / 2H), C
    N(0, 1 / N), D N(0, 1).

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
        check_size("RotationSSM", width, order, generator)
        check_ring("RotationSSM", r_min, r_max, max_phase)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        squared = r_min**2 + (r_max**2 - r_min**2) * torch.rand(order, generator=generator, dtype=torch.float64)
        nu = -0.5 * torch.log(squared).clamp(min=-1e3)
        gain = torch.sqrt(-torch.expm1(-2 * nu) / (2 * width)).float()[:, None]
        self.nu_log = nn.Parameter(torch.log(nu).float())
        self.theta = nn.Parameter(max_phase * torch.rand(order, generator=generator))
        self.B_1, self.B_2 = nn.Parameter(gain * normal(order, width)), nn.Parameter(gain * normal(order, width))
        size = 1 / math.sqrt(max(order, 1))
        self.C_1, self.C_2 = nn.Parameter(size * normal(width, order)), nn.Parameter(size * normal(width, order))
        self.D = nn.Parameter(normal(width))

    @property
    def order(self) -> int:
        """The number N of blocks, each of which holds two real states."""
        return self.nu_log.shape[0]

    def system(self) -> DiagonalSystem:
        """The layer as it acts, in the coordinates x_1 + i x_2 of its blocks."""
        nu, theta = precise(self.nu_log).exp(), precise(self.theta)
        return DiagonalSystem(nu, theta, self.B_1, self.B_2, self.C_1, -self.C_2, self.D)
