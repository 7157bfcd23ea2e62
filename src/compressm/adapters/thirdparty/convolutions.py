"""What layers that convolve have in common: inputs `(batch, H, L)`, arguments of a call, dropout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressm.errors import AdapterError


def system_input(layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """The first argument of a call as `(batch, L, H)`; AdapterError for one with a state or a rate other than 1."""
    u = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(u, Tensor):
        raise TypeError(f"{type(layer).__name__} was called without an input tensor as its first argument.")
    state = kwargs.get("state", args[1] if len(args) > 1 else None)
    rate = kwargs.get("rate", args[2] if len(args) > 2 else 1.0)
    if state is not None or rate != 1.0:
        raise AdapterError(
            f"{type(layer).__name__} was called with {'a state' if state is not None else f'rate={rate!r}'}; the "
            f"system that is cut is the one from a zero state with rate=1. Capture such passes."
        )
    return facing(layer, u)


def facing(layer: nn.Module, u: Tensor) -> Tensor:
    """From `(batch, L, H)` to the layer's own arrangement or back: `(batch, H, L)` unless `transposed` is False."""
    return u.mT if vars(layer).get("transposed", True) else u


def convolved(u: Tensor, kernel: Tensor) -> Tensor:
    """Inputs `(batch, L, H)` convolved with impulse responses `(p, H, L)`, as `(batch, L, H p)`."""
    length = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u, n=length, dim=1).unsqueeze(-1) * torch.fft.rfft(kernel, n=length).permute(2, 1, 0)
    return torch.fft.irfft(spectrum, n=length, dim=1)[:, : u.shape[1]].flatten(-2)


@contextmanager
def evaluated(layer: nn.Module) -> Iterator[None]:
    """In evaluation mode, without dropout; each submodule's own mode afterwards."""
    training = [m for m in layer.modules() if m.training]
    layer.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
