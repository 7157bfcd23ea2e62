"""The adapter of the layer with dense real matrices."""

from __future__ import annotations

import torch
from torch import nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.pullbacks import real_matrix_pullback
from compressm.adapters.registry import register_adapter
from compressm.adapters.update import LayerUpdate
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction


@register_adapter("compressm.layers.dense.DenseSSM")
class DenseAdapter(StateSpaceAdapter):
    """A, B, C, D full real matrices: any real similarity can be stored, and D may change.

    With A' = W^T A V the gradient of A follows as G' = V^T G W, B as V^T G, C as G W.
    """

    form = Form.DENSE
    full_feedthrough = True

    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's system."""
        a, b, c, d = (double(layer, name) for name in ("A", "B", "C", "D"))
        return StateSpace(a, b, c, d)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The matrices of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("DenseSSM: a reduction without maps between old and new states cannot be written.")
        system, w_t, v = reduction.system, reduction.restrict.linear, reduction.embed.linear
        tensors = {"A": system.a.clone(), "B": system.b.clone(), "C": system.c.clone()}
        if system.d is not None and not torch.equal(system.d, double(layer, "D")):
            tensors["D"] = system.d.clone()
        maps = (
            real_matrix_pullback("A", v, w_t),
            real_matrix_pullback("B", v, None),
            real_matrix_pullback("C", None, w_t),
        )
        return LayerUpdate(system.order, tensors, maps=maps)
