"""Backward passes that are written out: in the precision of their forward pass, and differentiated once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.errors import DerivativeError

Gradients = TypeVar("Gradients")


def written_out(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Decorates `backward` of an autograd function whose derivative is not to be taken.

    Autocast is off inside: a loss that is run backward in an autocast region would round its products to half. With
    `create_graph=True` it raises DerivativeError. Torch's own `once_differentiable` raises only where the second
    derivative is taken through the gradients that arrive; a Hessian-vector product that reaches its parameters on
    other ways as well would silently miss this one.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Gradients:
        if torch.compiler.is_compiling():
            return once(ctx, *gradients)
        if torch.is_grad_enabled():
            raise DerivativeError(
                "Second derivatives (create_graph=True) do not exist through the recurrences and pointwise passes of "
                "these layers, whose gradients are written out. Take them from differences of gradients, or run the "
                "recurrence with compressm.ops.diagonal_reference."
            )
        device = gradients[0].device.type
        if not torch.is_autocast_enabled(device):
            return backward(ctx, *gradients)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *gradients)

    return run
