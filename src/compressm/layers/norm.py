"""Normalisation over sequences that knows about padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from compressm.errors import ConfigError
from compressm.layers.layout import layout_of
from compressm.ops.derivative import written_out
from compressm.ops.kernels import usable
from compressm.ops.pointwise import standardize
from compressm.ops.remaking import Source, remember


class NormKind(Enum):
    """Which normalisation a block begins with."""

    BATCH = "batch"
    LAYER = "layer"
    NONE = "none"


class SequenceNorm(nn.Module, ABC):
    """Base of normalisations of (batch, L, H) that can also run step by step on (batch, H)."""

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalised x (batch, L, H); `mask` (batch, L) is True where data is."""

    @abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """The normalised x (batch, H) of one time step."""

    def fixed(self) -> tuple[Tensor, Tensor] | None:
        """(scale, shift), (H,) or (), of scale * x + shift in evaluation; None where it depends on x otherwise."""
        return None


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
        layout = layout_of(x)
        if mask is None and layout is not None and usable(x.device, x.dtype):
            memory = layout.memory(x)
            rows = memory.flatten(1) if layout.channels_first else memory.flatten(0, 1)
            y, mean, var, scale = standardize(rows, layout.channels_first, self.eps)
            count = x.shape[0] * x.shape[1]
            self._track(mean, var * (count / max(count - 1, 1)), self.momentum)
            y = layout.restore(y.view(memory.shape))
            if not layout.channels_first:
                remember(y, Source(x, mean, scale))
            return y
        y, mean, var, valid = _Standardize.apply(x, None if mask is None else mask[..., None], self.eps)
        self._track(mean, var * (valid / (valid - 1).clamp(min=1)), self.momentum * (valid > 0))
        return y

    def step(self, x: Tensor) -> Tensor:
        """The normalised x (batch, H) of one time step; raises ConfigError in training mode."""
        if self.training:
            raise ConfigError("Batch normalisation cannot run step by step in training mode; call model.eval() first.")
        return self._evaluate(x)

    def fixed(self) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(self.running_var + self.eps)
        return scale, -self.running_mean * scale

    def _evaluate(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(self.running_var + self.eps)
        return (x - self.running_mean) * scale

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor, rate: Tensor | float) -> None:
        self.running_mean += rate * (mean - self.running_mean)
        self.running_var += rate * (unbiased - self.running_var)


class _Standardize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) over the first two dimensions; where the mask (batch, L, 1) is False, x is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if mask is None:
            count = torch.full((), x.shape[0] * x.shape[1], dtype=wide.dtype, device=x.device)
        else:
            wide = torch.where(mask, wide, 0.0)
            count = mask.sum(dtype=wide.dtype)
        total = count.clamp(min=1)
        mean = wide.sum((0, 1)) / total
        centred = wide - mean
        spread = centred if mask is None else centred * mask
        var = torch.linalg.vector_norm(spread, dim=(0, 1)).square() / total
        scale = torch.rsqrt(var + eps)
        y = centred.mul_(scale)
        ctx.save_for_backward(y, mask, scale, total)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        y, mask, scale, total = ctx.saved_tensors
        wide = grad.to(y.dtype)
        offset = wide.sum((0, 1)) / total
        slope = (wide * y).sum((0, 1)) / total
        through = torch.addcmul(offset, y, slope)  # what flows back through the statistics
        result = torch.sub(wide, through).mul_(scale)
        if mask is not None:
            result *= mask
        return result.to(grad.dtype), None, None


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

    def fixed(self) -> tuple[Tensor, Tensor]:
        return torch.ones(()), torch.zeros(())


def build_norm(kind: NormKind, width: int) -> SequenceNorm:
    """The normalisation of this kind."""
    match kind:
        case NormKind.BATCH:
            return MaskedBatchNorm(width)
        case NormKind.LAYER:
            return MaskedLayerNorm(width)
        case NormKind.NONE:
            return NoNorm()
