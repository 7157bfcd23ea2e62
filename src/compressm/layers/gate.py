"""The gated linear unit of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from compressm.layers.layout import is_channel_first


class GatedLinear(nn.Linear):
    """a * sigmoid(b) with (a, b) = W x + w (Dauphin et al. 2017, arXiv 1612.08083); keeps the layout of x.

    Parameters: weight (2 H_out, H_in) and bias (2 H_out,), as of a linear map to both halves.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 2 * outputs)

    def forward(self, input: Tensor) -> Tensor:
        """(..., H_out) for x (..., H_in)."""
        if not is_channel_first(input) or torch.is_autocast_enabled(input.device.type):
            return functional.glu(super().forward(input), dim=-1)
        batch, length, _ = input.shape
        y: Tensor = _ColumnwiseGate.apply(input.permute(2, 0, 1).flatten(1), self.weight, self.bias)
        return y.view(self.out_features // 2, batch, length).permute(1, 2, 0)


class _ColumnwiseGate(torch.autograd.Function):
    """The gate on columns x (H_in, M). Saves the sigmoid, which torch's own glu computes again going backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        value, gate = torch.addmm(bias[:, None], weight, x).chunk(2)
        gate.sigmoid_()
        ctx.save_for_backward(x, weight, value, gate)
        return value * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight, value, gate = ctx.saved_tensors
        both = grad.new_empty(2 * value.shape[0], value.shape[1])
        grad_value, grad_gate = both.chunk(2)
        torch.mul(grad, gate, out=grad_value)
        torch.mul(grad_value, value, out=grad_gate)
        grad_gate.addcmul_(grad_gate, gate, value=-1)  # times 1 - sigmoid
        return weight.mT @ both, (x @ both.mT).mT, both.sum(1)
