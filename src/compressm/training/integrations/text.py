"""A compressor's state as JSON values, for trainers whose checkpoints hold nothing else."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compressm.checkpoint.document import TensorInfo
from compressm.checkpoint.tensorfile import from_bytes, to_bytes
from compressm.checkpoint.tree import decode, encode
from compressm.errors import CheckpointError


def to_json_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with its tensors as the base64 text of one safetensors file."""
    tensors: dict[str, Tensor] = {}
    tree = encode(dict(state), "state", tensors)
    data = base64.b64encode(to_bytes(tensors)).decode("ascii") if tensors else ""
    infos = {name: [list(tensor.shape), TensorInfo.of(tensor).dtype] for name, tensor in tensors.items()}
    return {"tree": tree, "tensors": infos, "data": data}


def from_json_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The inverse of `to_json_values`. Raises CheckpointError, naming `where`, for what that does not write."""
    try:
        infos = {name: TensorInfo(tuple(shape), dtype) for name, (shape, dtype) in values["tensors"].items()}
        data = base64.b64decode(values["data"], validate=True)
        tree = values["tree"]
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise CheckpointError(f"{where} is damaged: {error!r}. Use another checkpoint.") from error
    tensors = from_bytes(data, infos, where) if infos else {}
    state = decode(tree, tensors, where)
    if not isinstance(state, dict):
        raise CheckpointError(f"{where} is a {type(state).__name__}; wanted a dictionary. Use another checkpoint.")
    return state
