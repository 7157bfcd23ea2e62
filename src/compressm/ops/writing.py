"""Results written into parts of a larger tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def write(out: Tensor, function: Callable[..., Tensor], *operands: Tensor) -> None:
    """out = function(*operands), in one pass by its `out=`; `out` may be any view.

    torch.compile breaks its graph at an `out=` that is not contiguous, and makes one pass of what is here instead.
    """
    if torch.compiler.is_compiling():
        out.copy_(function(*operands))
    else:
        function(*operands, out=out)
