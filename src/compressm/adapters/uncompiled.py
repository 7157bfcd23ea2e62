"""What `torch.compile` made of a model: the model behind it, and passes that run as plain Python all the same."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that was given to `torch.compile`, where `model` is what that returned; else `model`."""
    while any(kind.__name__ == "OptimizedModule" for kind in type(model).__mro__):
        model = model.get_submodule("_orig_mod")
    return model


class Uncompiled:
    """The process's compiled code runs as plain Python while anyone holds this.

    Hooks that are put in place after a graph was compiled are no part of it, so what captures must hold this. The
    compiler's stance (`torch.compiler.set_stance`) is a global of the process, and whoever sets it saves what was
    there: a holder may let go inside of another's `with` block, or while garbage is collected. So the stance that this
    sets is not taken away at the end but made equal to the one before it, wherever it is stored then.
    """

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._ours: Any = None

    def hold(self, holder: int) -> None:
        """Let compiled code run as plain Python until `holder`, and all others, have let go.

        Raises RuntimeError, PyTorch's own, inside of compiled code.
        """
        if self._ours is None and "torch._dynamo" in sys.modules:  # without it nothing is compiled
            self._ours = torch.compiler.set_stance("force_eager")
        self._holders.add(holder)

    def let_go(self, holder: int) -> None:
        """End what `hold` began; nothing happens where it was not called."""
        self._holders.discard(holder)
        ours = self._ours
        if ours is not None and not self._holders:
            self._ours = None
            vars(ours.stance).update(vars(ours.prev))


UNCOMPILED = Uncompiled()
"""The one of this process."""
