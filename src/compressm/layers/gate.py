"""The gated linear unit of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressm.layers.layout import layout_of, linear
from compressm.ops.pointwise import dropout, gate_dropout


class GatedLinear(nn.Linear):
    """a * sigmoid(b) with (a, b) = W x + w (Dauphin et al. 2017, arXiv 1612.08083); keeps the layout of x.

    Parameters: weight (2 H_out, H_in) and bias (2 H_out,), as of a linear map to both halves.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 2 * outputs)

    def forward(self, input: Tensor, skip: Tensor | None = None, p: float = 0.0) -> Tensor:
        """skip + dropout(a * sigmoid(b)), (..., H_out), for x (..., H_in); `skip` None for zero, p dropout's share."""
        layout = layout_of(input)
        if layout is None or skip is None or torch.is_autocast_enabled(input.device.type):
            y = dropout(functional.glu(super().forward(input), dim=-1), p)
            return y if skip is None else skip + y
        both = linear(layout.memory(input), self.weight, self.bias, layout)
        through = layout.memory(skip).contiguous()
        return layout.restore(gate_dropout(both, through, p, layout.channels_first))
