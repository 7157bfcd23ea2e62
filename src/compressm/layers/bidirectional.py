"""Two causal layers, one run forwards and one backwards in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.layers.base import SequenceLayer
from compressm.layers.layout import Layout


class Bidirectional(nn.Module):
    """y = f(u) + flip(g(flip(u))) with the causal layers f `ahead` and g `behind` over the same width.

    Padding needs no shifting: padded inputs count as zero, and a linear layer that starts from a zero state stays
    there until the first valid input, so a flipped ragged batch gives what each sequence alone would give.
    Both layers stay modules of their own, with orders of their own.
    """

    def __init__(self, ahead: SequenceLayer, behind: SequenceLayer) -> None:
        super().__init__()
        self.ahead = ahead
        self.behind = behind

    @property
    def width(self) -> int:
        """The number H of inputs and outputs."""
        return self.ahead.width

    def layout(self, batch: int, length: int) -> Layout:
        """That of `ahead`."""
        return self.ahead.layout(batch, length)

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H); `mask` (batch, L) is True where data is."""
        flipped = None if mask is None else mask.flip(1)
        behind: Tensor = self.behind(u.flip(1), mask=flipped)
        ahead: Tensor = self.ahead(u, mask=mask)
        return torch.add(ahead, behind.flip(1))
