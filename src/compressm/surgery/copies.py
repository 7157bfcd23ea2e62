"""Copies of nested state: dicts, lists, tuples, tensors and arrays inside are new, all else is shared."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor


def copied(value: Any) -> Any:
    """A copy of nested state that later in-place changes to `value` do not reach.

    Functions, modules and other objects are not copied but shared, so that a model is never duplicated by accident.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        new = copy.copy(value)  # keeps the kind: Counter, OrderedDict, defaultdict
        for key, item in value.items():
            new[key] = copied(item)
        return new
    if isinstance(value, list):
        return [copied(item) for item in value]
    if type(value) is tuple:
        return tuple(copied(item) for item in value)
    if isinstance(value, set):
        return set(value)
    return value
