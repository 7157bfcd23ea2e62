"""The gated linear unit of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressm.layers.layout import Layout, layout_of
from compressm.ops.pointwise import dropout, gate_dropout, gelu_dropout, linear
from compressm.ops.tail import gelu_gate


class GatedLinear(nn.Linear):
    """a * sigmoid(b) with (a, b) = W x + w (Dauphin et al. 2017, arXiv 1612.08083); keeps the layout of x.

    Parameters: weight (2 H_out, H_in) and bias (2 H_out,), as of a linear map to both halves.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 2 * outputs)

    def forward(self, input: Tensor, skip: Tensor | None = None, p: float = 0.0, *, gelu: bool = False) -> Tensor:
        """skip + dropout(a * sigmoid(b)), (..., H_out), for x (..., H_in); `skip` None for zero, p dropout's share.

        With `gelu` for dropout(x Phi(x)) in place of x.
        """
        layout = layout_of(input)
        if layout is None or skip is None or torch.is_autocast_enabled(input.device.type):
            activated = _gelu_dropout(input, layout, p) if gelu else input
            y = dropout(functional.glu(super().forward(activated), dim=-1), p)
            return y if skip is None else skip + y
        x, first = layout.memory(input), layout.channels_first
        through = layout.memory(skip).contiguous()
        if gelu:
            return layout.restore(gelu_gate(x, through, self.weight, self.bias, p, first))
        return layout.restore(gate_dropout(linear(x, self.weight, self.bias, first), through, p, first))


def _gelu_dropout(x: Tensor, layout: Layout | None, p: float) -> Tensor:
    return gelu_dropout(x, p) if layout is None else layout.restore(gelu_dropout(layout.memory(x), p))
