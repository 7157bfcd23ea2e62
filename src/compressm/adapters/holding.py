"""What a layer holds, for layers that hold their system in parameters, buffers or plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reference_tensor(layer: nn.Module) -> Tensor:
    """A tensor of the layer, whose dtype and device are the layer's: a parameter, else a buffer, else a plain one."""
    for tensor in (*layer.parameters(), *layer.buffers(), *(v for v in vars(layer).values() if isinstance(v, Tensor))):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.real if tensor.is_complex() else tensor
    return torch.zeros(())


def identity_of(layer: nn.Module) -> frozenset[int]:
    """What makes two layers one system: the very same parameters, or the module itself where it has none."""
    return frozenset(id(p) for p in layer.parameters()) or frozenset({id(layer)})


def held(layer: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or plain tensor `name` (dots for nested modules), without a graph.

    Raises AttributeError where there is none.
    """
    path, _, leaf = name.rpartition(".")
    value: Tensor = getattr(layer.get_submodule(path), leaf)
    return value.detach()


def single(value: Tensor) -> Tensor:
    """In single precision, complex where it was."""
    return value.to(torch.complex64 if value.is_complex() else torch.float32)


def double(layer: nn.Module, name: str) -> Tensor:
    """`held` on the CPU in double precision."""
    return in_double(held(layer, name))


def in_double(value: Tensor) -> Tensor:
    """On the CPU in double precision, complex where it was."""
    return value.to("cpu", torch.complex128 if value.is_complex() else torch.float64)
