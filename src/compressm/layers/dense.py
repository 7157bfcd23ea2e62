"""A linear state space layer with dense real matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compressm.layers.base import SequenceLayer, check_size
from compressm.layers.lru import check_ring
from compressm.layers.systems import DenseSystem
from compressm.ops import dense_lti


class DenseSSM(SequenceLayer):
    """x_k = A x_{k-1} + B u_k and y_k = C x_k + D u_k with real matrices A (N, N), B (N, H), C (H, N), D (H, H).

    At the start A is block diagonal of 2 x 2 rotations, scaled to radii whose square is uniform on
    [r_min^2, r_max^2] (the real form of the LRU's ring), with one real pole if N is odd; the rows of B are scaled by
    sqrt(1 - radius^2), so that white input gives states of one size; C is N(0, 1 / N), D diagonal N(0, 1).
    Nothing keeps A stable in training; the page on guarantees says what can be done ("Unstable layers").

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
        check_size("DenseSSM", width, order, generator)
        check_ring("DenseSSM", r_min, r_max, max_phase)
        pairs = (order + 1) // 2
        radius = torch.sqrt(torch.rand(pairs, generator=generator) * (r_max**2 - r_min**2) + r_min**2)
        phase = torch.rand(pairs, generator=generator) * max_phase
        cos, sin = radius * phase.cos(), radius * phase.sin()
        rotations = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        a = torch.block_diag(*rotations)[:order, :order] if order else torch.zeros(0, 0)
        scale = torch.sqrt((1 - radius**2) / width).repeat_interleave(2)[:order, None]
        self.A = nn.Parameter(a.contiguous())
        self.B = nn.Parameter(scale * torch.randn(order, width, generator=generator))
        self.C = nn.Parameter(torch.randn(width, order, generator=generator) / math.sqrt(max(order, 1)))
        self.D = nn.Parameter(torch.diag(torch.randn(width, generator=generator)))

    @property
    def width(self) -> int:
        """The number H of inputs and outputs."""
        return self.D.shape[0]

    @property
    def order(self) -> int:
        """The number N of real states."""
        return self.A.shape[0]

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H) from a zero state.

        Where `mask` (batch, L) is False the input counts as zero; outputs there mean nothing.
        """
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        return dense_lti(self.A, self.B, self.C, u, feedthrough=self.D)

    def system(self) -> DenseSystem:
        return DenseSystem(self.A, self.B, self.C, self.D)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, N)."""
        return self.A.new_zeros(batch, self.order)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, N) for one input u (batch, H)."""
        state = state @ self.A.mT + u @ self.B.mT
        return state @ self.C.mT + u @ self.D.mT, state
