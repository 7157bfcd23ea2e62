"""Named tensors as the bytes of a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressm.checkpoint.document import TensorInfo
from compressm.errors import CheckpointError


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The file. Complex tensors are stored as real pairs along a last dimension of 2."""
    from safetensors.torch import save  # here, so that importing the library stays quick

    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
            raise CheckpointError(f"'{name}' is quantised, sparse or without values; a checkpoint holds dense tensors.")
        dense = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
        dense = dense.clone(memory_format=torch.contiguous_format)
        stored[name] = torch.view_as_real(dense) if dense.is_complex() else dense
    try:
        return save(stored)
    except KeyError as error:
        raise CheckpointError(f"safetensors cannot store dtype {error}; convert these tensors first.") from error


def from_bytes(data: bytes, infos: Mapping[str, TensorInfo], where: str) -> dict[str, Tensor]:
    """The tensors in the file. Raises CheckpointError where they are not exactly those that `infos` declares.

    Memory is taken for what the file holds, never for what it declares.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where} is not a safetensors file: {error}. Use another checkpoint.") from error
    if different := sorted(stored.keys() ^ infos.keys()):
        raise CheckpointError(
            f"{where}: its tensors are not those that structure.json declares, {', '.join(different[:5])} is on one "
            f"side only. Use another checkpoint."
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        info = infos[name]
        if info.is_complex and tensor.is_floating_point() and tensor.ndim > 0 and tensor.shape[-1] == 2:
            tensor = torch.view_as_complex(tensor.contiguous())
        if TensorInfo.of(tensor) != info:
            raise CheckpointError(
                f"{where}: '{name}' is {TensorInfo.of(tensor)}, but structure.json declares {info}. Use another "
                f"checkpoint."
            )
        tensors[name] = tensor
    return tensors
