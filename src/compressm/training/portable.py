"""State of Python objects as nested dictionaries and lists of JSON values and tensors, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressm.errors import ConfigError

_TAG = "__kind__"


def encode(value: object, where: str = "the state") -> Any:
    """`value` with tuples, arrays, counters, keys other than texts, and infinite numbers as tagged dictionaries.

    Tensors stay as they are. Raises ConfigError, naming the place, for what cannot be written without pickling.
    """
    if value is None or isinstance(value, (bool, int, str, Tensor)):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else _tagged("float", str(float(value)))
    if isinstance(value, np.ndarray):
        return _tagged("array", torch.from_numpy(value.astype(np.int64)), dtype=str(value.dtype))
    if isinstance(value, (list, tuple)):
        items = [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return _tagged("tuple", items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        if type(value) is dict and _TAG not in value and all(isinstance(k, str) for k in value):
            return {k: encode(v, f"{where}.{k}") for k, v in value.items()}
        pairs = [[encode(k, where), encode(v, f"{where}[{k!r}]")] for k, v in value.items()]
        return _tagged("counter" if isinstance(value, Counter) else "dict", pairs)
    raise ConfigError(
        f"{where} holds a {type(value).__name__}, which cannot be saved without pickling; leave the object that "
        "owns it out, or save between a cut's probe and the next cut."
    )


def decode(value: object) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if _TAG not in value:
        return {k: decode(v) for k, v in value.items()}
    content = value["value"]
    match value[_TAG]:
        case "float":
            return float(content)
        case "tuple":
            return tuple(decode(v) for v in content)
        case "array":
            return content.numpy().astype(value["dtype"])
        case "dict":
            return {decode(k): decode(v) for k, v in content}
        case "counter":
            return Counter({decode(k): decode(v) for k, v in content})
        case kind:
            raise ConfigError(f"A saved value has the unknown kind {kind!r}; update the library.")


def _tagged(kind: str, value: object, **more: object) -> dict[str, object]:
    return {_TAG: kind, "value": value, **more}
