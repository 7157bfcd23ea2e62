"""What layers with a system for each channel share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from compressm.layers.base import SequenceLayer
from compressm.layers.layout import Layout
from compressm.layers.systems import DiagonalBank
from compressm.ops.bank import bank_lti, bank_step
from compressm.ops.sampling import Sampled


class BankLayer(SequenceLayer):
    """Base of banks of H single-input single-output systems, with the feedthrough as the parameter D (H,)."""

    D: nn.Parameter

    @property
    def width(self) -> int:
        """The number H of channels."""
        return self.D.shape[0]

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H) from a zero state.

        Where `mask` (batch, L) is False the input counts as zero; outputs there mean nothing.
        """
        return self.respond(u if mask is None else torch.where(mask[..., None], u, 0.0))

    @abstractmethod
    def respond(self, u: Tensor) -> Tensor:
        """The output (batch, L, H) for an input without padding."""

    def layout(self, batch: int, length: int) -> Layout:
        """Channels first, always: every channel is a convolution of its own."""
        return Layout.CHANNELS


class DiagonalBankLayer(BankLayer):
    """Base of banks of diagonal complex systems with a real output, which say in `system` how they act."""

    @abstractmethod
    def system(self) -> DiagonalBank:
        """The layer as it acts."""

    def respond(self, u: Tensor) -> Tensor:
        """The output (batch, L, H) for an input without padding."""
        s = self.system()
        return bank_lti(s.nu, s.theta, s.w_re, s.w_im, u, feedthrough=s.d)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, H, N, 2): real and imaginary parts, in float32 or wider."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return torch.zeros(batch, self.width, self.order, 2, dtype=dtype, device=self.D.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, H, N, 2) for one input u (batch, H)."""
        s = self.system()
        return bank_step(s.nu, s.theta, s.w_re, s.w_im, u, state, feedthrough=s.d)


def sampled_bank(sampled: Sampled, c_re: Tensor, c_im: Tensor, d: Tensor) -> DiagonalBank:
    """The bank with these poles and input gains and the output weights C (all (H, N)), in C's dtype or wider."""
    dtype = torch.promote_types(c_re.dtype, torch.float32)
    re, im = sampled.gain_re.to(dtype), sampled.gain_im.to(dtype)
    return DiagonalBank(sampled.nu, sampled.theta, re * c_re - im * c_im, re * c_im + im * c_re, d)
