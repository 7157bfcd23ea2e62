"""One residual block around a state space layer."""

from __future__ import annotations

from torch import Tensor, nn

from compressm.errors import ConfigError
from compressm.layers.base import SequenceLayer
from compressm.layers.bidirectional import Bidirectional
from compressm.layers.gate import GatedLinear
from compressm.layers.norm import SequenceNorm


class Block(nn.Module):
    """x + dropout(GLU(dropout(GELU(ssm(norm(x)))))), with GLU(z) = a * sigmoid(b) for (a, b) = W z + w.

    This is the block of the LRU's and CompreSSM's experiments (Orvieto et al. 2023, section 4; arXiv 2510.02823).
    """

    def __init__(self, norm: SequenceNorm, ssm: SequenceLayer | Bidirectional, dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.ssm = ssm
        self.gate = GatedLinear(ssm.width, ssm.width)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for x (batch, L, H); `mask` (batch, L) is True where data is."""
        return self._mix(self.ssm(self.norm(x, mask), mask=mask), x)

    def initial_state(self, batch: int) -> Tensor:
        """The state before the first step."""
        return self.causal().initial_state(batch)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state for one input x (batch, H)."""
        y, state = self.causal().step(self.norm.step(x), state)
        return self._mix(y, x), state

    def _mix(self, y: Tensor, skip: Tensor) -> Tensor:
        p = self.dropout if self.training else 0.0
        mixed: Tensor = self.gate(y, skip, p, gelu=True)
        return mixed

    def causal(self) -> SequenceLayer:
        """The layer, which must run step by step; raises ConfigError for a bidirectional one."""
        if isinstance(self.ssm, Bidirectional):
            raise ConfigError("A bidirectional model needs the whole sequence; streaming needs bidirectional=False.")
        return self.ssm
