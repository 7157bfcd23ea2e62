"""Nested state as JSON with the tensors aside.

JSON has no tuples, no keys but texts, no infinities and no tensors; these become objects with one key that starts with
`$`. Everything else stays plain JSON.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressm.errors import CheckpointError

_TENSOR, _ARRAY, _TUPLE, _DICT, _COUNTER, _FLOAT = "$tensor", "$array", "$tuple", "$dict", "$counter", "$float"
_NON_FINITE = ("nan", "inf", "-inf")


def encode(value: Any, where: str, tensors: dict[str, Tensor] | None) -> Any:
    """`value` as JSON-able data; its tensors and arrays go into `tensors` under names that begin with `where`.

    Where `tensors` is None, none are allowed. NumPy's numbers become Python's, its arrays stay arrays.
    Raises CheckpointError, naming the place, for what cannot be stored without pickling.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, list):
        return [encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if type(value) in (tuple, torch.Size):
        return {_TUPLE: [encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if type(value) in (dict, OrderedDict, defaultdict):
        return _encode_dict(value, where, tensors)
    if type(value) is Counter:
        return {_COUNTER: [[encode(k, where, tensors), int(n)] for k, n in value.items()]}
    if tensors is not None and isinstance(value, Tensor):
        return {_TENSOR: _put(value, where, tensors)}
    if tensors is not None and isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: _put(torch.from_numpy(np.ascontiguousarray(value)), where, tensors)}
    wanted = "numbers, texts, None, lists, tuples and dictionaries" + (" and tensors" if tensors is not None else "")
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: it holds "
        f"{wanted}. Convert the value, or keep it out of the state."
    )


def decode(node: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """The inverse of `encode`. Raises CheckpointError, naming the place, for what `encode` does not write."""
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [decode(item, tensors, f"{where}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        raise CheckpointError(f"{where} is a {type(node).__name__}; wanted JSON. Use another checkpoint.")
    if not any(key.startswith("$") for key in node):
        return {key: decode(item, tensors, f"{where}.{key}") for key, item in node.items()}
    if len(node) == 1:
        ((tag, content),) = node.items()
        found = _decode_tagged(tag, content, tensors, where)
        if found is not None:
            return found[0]
    raise CheckpointError(f"{where} holds an unknown kind of value, {list(node)}. Use another checkpoint.")


def _encode_dict(value: dict[Any, Any], where: str, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, f"{where}.{key}", tensors) for key, item in value.items()}
    items = [[encode(k, f"{where} (a key)", None), encode(v, f"{where}.{k}", tensors)] for k, v in value.items()]
    return {_DICT: items}


def _put(tensor: Tensor, where: str, tensors: dict[str, Tensor]) -> str:
    name, number = where, 1
    while name in tensors:
        number += 1
        name = f"{where}#{number}"
    tensors[name] = tensor
    return name


def _decode_tagged(tag: str, content: Any, tensors: Mapping[str, Tensor], where: str) -> tuple[Any] | None:
    """The value in a tuple of one, None where tag and content do not fit."""
    if tag == _FLOAT and content in _NON_FINITE:
        return (float(content),)
    if tag in (_TENSOR, _ARRAY) and isinstance(content, str) and content in tensors:
        tensor = tensors[content]
        return (tensor if tag == _TENSOR else tensor.numpy().copy(),)
    if tag == _TUPLE and isinstance(content, list):
        return (tuple(decode(item, tensors, where) for item in content),)
    if tag in (_DICT, _COUNTER) and isinstance(content, list):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
            return None
        pairs = [(decode(k, tensors, where), decode(v, tensors, where)) for k, v in content]
        if any(isinstance(key, dict | list | Tensor) for key, _ in pairs):
            return None
        return (dict(pairs) if tag == _DICT else Counter(dict(pairs)),)
    return None
