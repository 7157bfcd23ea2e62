"""Channel-first memory behind (batch, L, H) tensors.

All layers speak (batch, L, H). Where the recurrence runs as a convolution it wants each channel's samples side by
side: a tensor whose memory is (H, batch, L) saves copies, and a linear map over the channels becomes one matrix
product with (H, batch * L). What is here keeps whichever layout it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_channel_first(x: Tensor) -> bool:
    """Whether x is (batch, L, H) with memory (H, batch, L)."""
    return x.ndim == 3 and x.permute(2, 0, 1).is_contiguous()


def channel_first(x: Tensor) -> Tensor:
    """The same values (batch, L, H) in (H, batch, L) memory."""
    return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)


class SequenceLinear(nn.Linear):
    """torch.nn.Linear that keeps channel-first memory channel-first."""

    def forward(self, input: Tensor) -> Tensor:
        """W x + w over the last dimension of x (..., H_in)."""
        if self.bias is None or not is_channel_first(input) or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        batch, length, _ = input.shape
        product = torch.addmm(self.bias[:, None], self.weight, input.permute(2, 0, 1).flatten(1))
        return product.view(self.out_features, batch, length).permute(1, 2, 0)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout with p rounded to a multiple of 2^-16, in the layout of x.

    Four elements share one 64-bit random number; drawing one number an element, as torch's own dropout does on the
    CPU, takes longer than the rest of a narrow block.
    """
    dropped = min(round(p * 65536), 65535)
    if not training or dropped == 0:
        return x
    if is_channel_first(x):
        return _dropout(x.permute(2, 0, 1), dropped).permute(1, 2, 0)
    return _dropout(x, dropped)


def _dropout(x: Tensor, dropped: int) -> Tensor:
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15 .. 2^15 - 1
    kept = torch.ge(bits, dropped - 32768, out=torch.empty_like(x, memory_format=torch.contiguous_format))
    return x * kept.mul_(65536 / (65536 - dropped))
