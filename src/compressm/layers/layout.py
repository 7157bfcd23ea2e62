"""The orders in which a (batch, L, H) tensor may lie in memory.

All layers speak (batch, L, H). What is fastest in memory depends on how the recurrence runs: a convolution wants each
channel's samples side by side, blocks of time want the rows of a block together, a compiled scan wants sequences side
by side. With either the channels last or the channels first, a linear map over the channels is one matrix product.
What is here keeps whichever layout it is given.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn

from compressm.ops import Form, pointwise


class Layout(Enum):
    """The dimensions of (batch, L, H) in the order of memory, slowest first."""

    ROWS = (0, 1, 2)
    TIME = (1, 0, 2)
    CHANNELS = (2, 0, 1)
    LANES = (2, 1, 0)

    @property
    def channels_first(self) -> bool:
        """Whether the channels are slowest; otherwise they are fastest."""
        return self.value[0] == 2

    def memory(self, x: Tensor) -> Tensor:
        """A view of x with its dimensions in the order of this layout."""
        return x.permute(self.value)

    def arrange(self, x: Tensor) -> Tensor:
        """The same values (batch, L, H) in this layout; x itself where it lies so already."""
        return self.restore(self.memory(x).contiguous())

    def restore(self, memory: Tensor) -> Tensor:
        """(batch, L, H) for a tensor with its dimensions in the order of this layout."""
        return memory.permute(sorted(range(3), key=self.value.__getitem__))


def layout_for(form: Form) -> Layout:
    """The layout in which this form of a recurrence needs no copies."""
    return Layout(form.memory)


def layout_of(x: Tensor) -> Layout | None:
    """How x lies in memory; None for anything else than a dense (batch, L, H)."""
    if x.ndim != 3:
        return None
    sizes, strides = x.shape, x.stride()
    for known in Layout:
        dense = 1
        for dimension in reversed(known.value):
            if sizes[dimension] != 1 and strides[dimension] != dense:
                break
            dense *= sizes[dimension]
        else:
            return known
    return Layout.ROWS if 0 in sizes else None


def total_over_time(x: Tensor) -> Tensor:
    """(batch, H), the sums over the steps of x (batch, L, H), which lies in memory in any order."""
    layout = layout_of(x)
    if layout is None:
        return x.sum(1)
    total = layout.memory(x).sum(layout.value.index(1))  # a sum in the order of memory is vectorized
    return total.mT if layout.channels_first else total


class SequenceLinear(nn.Linear):
    """torch.nn.Linear that keeps the layout of its input, or gives its output another one without a copy."""

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """W x + w over the last dimension of x (..., H_in), in `layout` if given."""
        layout = layout or layout_of(input)
        if self.bias is None or layout is None or torch.is_autocast_enabled(input.device.type):
            y = super().forward(input)
            return y if layout is None else layout.arrange(y)
        return layout.restore(linear(layout.memory(input), self.weight, self.bias, layout))


def linear(memory: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """W x + w for x given and returned with its dimensions in the order of `layout`."""
    return pointwise.linear(memory, weight, bias, layout.channels_first)
