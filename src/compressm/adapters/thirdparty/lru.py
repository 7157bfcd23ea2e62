"""The linear recurrent unit of other packages: complex parameters B and C, a full D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.holding import double
from compressm.adapters.lru import RingAdapter
from compressm.adapters.registry import register_adapter, register_signature
from compressm.adapters.update import LayerUpdate
from compressm.adapters.weights import PlainWeights
from compressm.errors import AdapterError
from compressm.reduction.result import Reduction

_SIZE = "state_features"  # lru-reduction keeps the number of states


@register_adapter("LRU_pytorch.LRU.LRU")
@register_adapter("lru.linear.LRU")
@register_signature(
    {"nu_log": "n", "theta_log": "n", "gamma_log": "n", "B": "n m complex", "C": "p n complex", "D": "p m"}
)
class ComplexLRUAdapter(RingAdapter):
    """`LRU_pytorch.LRU` (LRU-pytorch), `lru.linear.LRU` (lru-reduction) and copies that hold the same tensors.

    A copy may keep its last state in the plain tensor `state` `(n,)`, and n in the attribute `state_features`; both
    follow a cut, the state starts from zero.
    """

    full_feedthrough = True
    input_weights = PlainWeights("B")
    output_weights = PlainWeights("C")

    def feedthrough(self, layer: nn.Module) -> Tensor:
        """The full matrix D."""
        return double(layer, "D")

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system, and what else carries the order."""
        update = super().write(layer, reduction)
        tensors = dict(update.tensors)
        d, state = reduction.system.d, vars(layer).get("state")
        if d is not None and not torch.equal(d, double(layer, "D")):
            tensors["D"] = d.clone()
        if isinstance(state, Tensor):
            tensors["state"] = state.new_zeros(update.order)
        return replace(update, tensors=tensors, attributes=self.prepare(layer, update.order))

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; the second one is a state."""
        u, _ = super().inputs(layer, args[:1], kwargs)
        state = kwargs.get("state", args[1] if len(args) > 1 else None)
        if isinstance(state, Tensor) and bool((state != 0).any()):
            raise AdapterError(
                f"{type(layer).__name__} was called with a state: what it saw before is not in what was captured. "
                f"Capture passes over whole sequences, without a state."
            )
        return u, None

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The number of states, where the layer keeps it."""
        return {_SIZE: order} if _SIZE in vars(layer) else {}
