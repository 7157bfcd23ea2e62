"""What `torch.compile` must be told when sizes change."""

from __future__ import annotations

import sys
from enum import Enum

import torch


class CompilePolicy(Enum):
    """What becomes of compiled graphs when a cut changes sizes. A graph of another size is never run either way."""

    RESET = "reset"  # all graphs of the process are dropped: each is compiled once a size, and there are never too many
    DYNAMIC = "dynamic"  # they are compiled for any size; set before the first pass, for all that the process compiles


def prepare_compiler(policy: CompilePolicy) -> None:
    """Let sizes of parameters be dynamic under DYNAMIC; compiled graphs are recompiled at the second size they meet."""
    if policy is CompilePolicy.DYNAMIC:
        import torch._dynamo.config

        torch._dynamo.config.force_parameter_static_shapes = False
        torch._dynamo.config.force_nn_module_property_static_shapes = False


def sizes_changed(policy: CompilePolicy) -> None:
    """Tell the compiler, where anything was compiled, that the sizes of parameters have changed."""
    if policy is CompilePolicy.RESET and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
