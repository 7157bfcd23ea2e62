"""Normalisation over sequences that knows about padding."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressm.errors import ConfigError
from compressm.layers.layout import is_channel_first


class NormKind(Enum):
    """Which normalisation a block begins with."""

    BATCH = "batch"
    LAYER = "layer"
    NONE = "none"


class SequenceNorm(nn.Module):
    """Base of normalisations of (batch, L, H) that can also run step by step on (batch, H)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalised x (batch, L, H); `mask` (batch, L) is True where data is."""
        raise NotImplementedError

    def step(self, x: Tensor) -> Tensor:
        """The normalised x (batch, H) of one time step."""
        raise NotImplementedError


class MaskedBatchNorm(SequenceNorm):
    """(x - mean) / sqrt(var + eps) per channel, with statistics over all valid positions of the batch; no affine map.

    In training the statistics are the batch's and the running ones follow with `momentum` (the running variance
    unbiased, as in torch.nn.BatchNorm1d); in evaluation the running ones are used. Padded positions count nowhere.
    A batch without valid positions leaves the running statistics as they are.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalised x (batch, L, H); `mask` (batch, L) is True where data is."""
        if not self.training or x.numel() == 0:
            return self._evaluate(x)
        if mask is None and x.shape[0] * x.shape[1] > 1:
            return self._unmasked(x)
        return self._masked(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask)

    def step(self, x: Tensor) -> Tensor:
        """The normalised x (batch, H) of one time step; raises ConfigError in training mode."""
        if self.training:
            raise ConfigError("Batch normalisation cannot run step by step in training mode; call model.eval() first.")
        return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(self.running_var + self.eps)
        return (x - self.running_mean) * scale

    def _unmasked(self, x: Tensor) -> Tensor:
        channel_major = is_channel_first(x)  # as an image of one row, in whichever layout torch has a fast kernel for
        image = x.permute(2, 0, 1).flatten(1)[None, :, None] if channel_major else x.mT.unsqueeze(2)
        image = functional.batch_norm(
            image, self.running_mean, self.running_var, None, None, True, self.momentum, self.eps
        )
        if channel_major:
            return image.view(x.shape[2], x.shape[0], x.shape[1]).permute(1, 2, 0)
        return image.squeeze(2).mT

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(x.dtype)[..., None]
        count = weight.sum()
        total = count.clamp(min=1)
        mean = (x * weight).sum((0, 1)) / total
        centred = x - mean
        var = (centred.square() * weight).sum((0, 1)) / total
        with torch.no_grad():
            rate = self.momentum * (count > 0).to(x.dtype)
            unbiased = var * (total / (total - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate.to(self.running_mean.dtype))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate.to(self.running_var.dtype))
        return centred * torch.rsqrt(var + self.eps)


class MaskedLayerNorm(SequenceNorm):
    """Layer normalisation over the channels; each position stands alone, so padding needs no care."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalised x (batch, L, H)."""
        normalised: Tensor = self.norm(x)
        return normalised

    def step(self, x: Tensor) -> Tensor:
        """The normalised x (batch, H) of one time step."""
        return self.forward(x)


class NoNorm(SequenceNorm):
    """The identity."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x itself."""
        return x

    def step(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


def build_norm(kind: NormKind, width: int) -> SequenceNorm:
    """The normalisation of this kind."""
    match kind:
        case NormKind.BATCH:
            return MaskedBatchNorm(width)
        case NormKind.LAYER:
            return MaskedLayerNorm(width)
        case NormKind.NONE:
            return NoNorm()
