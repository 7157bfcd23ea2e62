"""Tensors that need not be stored for a backward pass, since what they were made of is there anyway.

A normalised signal is the sum that runs through all blocks, which others store, shifted and scaled; an input matrix may
be a parameter with scaled rows. Making them anew takes a pass over memory, little against any matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from compressm.ops.kernels import usable


@dataclass(frozen=True)
class Source:
    """What a tensor was made of: (x - mean) scale, or x scale. Mean and scale are few numbers that fit to x."""

    x: Tensor
    mean: Tensor | None
    scale: Tensor


_known = WeakTensorKeyDictionary()


def remember(made: Tensor, source: Source) -> None:
    """Note what this tensor was made of, for as long as it lives and is not changed in place."""
    if not (torch.compiler.is_compiling() or made.is_inference()):
        _known[made] = made._version, source


def stored(made: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What to store instead of this very tensor for `remake`: x, mean and scale, or itself where nothing is noted."""
    if torch.compiler.is_compiling():
        return made, None, None
    noted: tuple[int, Source] | None = _known.get(made)
    if noted is None or noted[0] != made._version:
        return made, None, None
    source = noted[1]
    return source.x.detach(), None if source.mean is None else source.mean.detach(), source.scale.detach()


def remake(x: Tensor, mean: Tensor | None, scale: Tensor | None) -> Tensor:
    """The tensor again, of x or of some of its rows."""
    if scale is None:
        return x
    if mean is not None and x.ndim == 2 and x.is_contiguous() and usable(x.device, x.dtype):
        from compressm.ops.kernels import moments

        zero = torch.zeros_like(mean)
        return moments.affine(x, x, torch.stack([mean, zero, zero, scale]), False)
    return x * scale if mean is None else torch.sub(x, mean).mul_(scale)
