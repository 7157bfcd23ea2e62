"""What layers with one diagonal complex system share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from compressm.layers.base import SequenceLayer
from compressm.layers.layout import Layout, layout_for
from compressm.layers.systems import DiagonalSystem
from compressm.ops import Form, Machine, choose_form, diagonal_lti, diagonal_step


class DiagonalLayer(SequenceLayer):
    """Base of layers that are one diagonal system with H inputs and outputs, the real part of a complex output.

    Such a layer says in `system` how it acts, and has the feedthrough as the parameter D (H,). The form in which the
    recurrence runs depends on sizes and on `training`, never on whether gradients are recorded: what activation
    checkpointing computes twice is computed alike.
    """

    D: nn.Parameter

    @property
    def width(self) -> int:
        """The number H of inputs and outputs."""
        return self.D.shape[0]

    @abstractmethod
    def system(self) -> DiagonalSystem:
        """The layer as it acts."""

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H) from a zero state.

        Where `mask` (batch, L) is False the input counts as zero; outputs there mean nothing.
        """
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        s = self.system()
        form = self._form(u.shape[0], u.shape[1], Machine.of(u)) if u.ndim == 3 else None
        return diagonal_lti(s.nu, s.theta, s.b_re, s.b_im, s.c_re, s.c_im, u, form, feedthrough=s.d)

    def layout(self, batch: int, length: int) -> Layout:
        """That of the form in which the recurrence runs."""
        return layout_for(self._form(batch, length, Machine.of(self.D)))

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, N, 2): real and imaginary parts, in float32 or wider."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return torch.zeros(batch, self.order, 2, dtype=dtype, device=self.D.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, N, 2) for one input u (batch, H)."""
        s = self.system()
        return diagonal_step(s.nu, s.theta, s.b_re, s.b_im, s.c_re, s.c_im, u, state, feedthrough=s.d)

    def _form(self, batch: int, length: int, machine: Machine) -> Form:
        return choose_form(batch, length, self.width, self.width, self.order, self.training, machine)
