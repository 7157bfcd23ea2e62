"""What `torch.compile` has made of a model whose sizes change."""

from __future__ import annotations

import sys

import torch


def drop_graphs() -> None:
    """Drop all compiled graphs of the process; each is compiled again, once, for the sizes there are now.

    PyTorch never runs a graph on other sizes than its own. But it keeps a few graphs of a function at most, and would
    run a model of many sizes uncompiled from then on without a word.
    """
    if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and importing it takes seconds
        torch.compiler.reset()
