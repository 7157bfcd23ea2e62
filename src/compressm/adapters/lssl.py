"""The adapter of the layer LSSL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.pullbacks import real_matrix_pullback
from compressm.adapters.registry import register_adapter
from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import AdapterError
from compressm.layers.lssl import dissipative_matrix, sample_bilinear
from compressm.linalg.dissipative import dissipative_states
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction


@register_adapter("compressm.layers.lssl.LSSL")
class LSSLAdapter(StateSpaceAdapter):
    """A bank of H systems with A and B in common, sampled with a step for each channel.

    One similarity of the continuous system serves all channels: A' = W^T A V, B' = W^T B, C' = C V. The
    controllability Gramian of the bilinear sampling is that of the continuous system times the step, so all channels
    have one up to a factor; the observability Gramian depends on the step, since C is not sampled along. W and V come
    from the mean of P and the sum of Q over the channels. No error bound holds; the error is reported as measured.

    The reduced A' is stored in states in which it is a skew matrix less a positive diagonal one
    (`dissipative_states`). Gradients of these two do not determine that of A', so their moments start anew.
    """

    form = Form.SHARED

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems."""
        return _bank(layer, *_continuous(layer))

    def projected(self, layer: nn.Module, restrict: Tensor, embed: Tensor) -> StateSpace:
        """The discrete systems of the projected continuous one."""
        return _bank(layer, *_projected(layer, restrict, embed))

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The matrices of the projected continuous system."""
        if reduction.restrict is None or reduction.embed is None or reduction.restrict.linear.ndim != 2:
            raise AdapterError("LSSL: only a reduction with one pair of maps for all channels can be written.")
        w_t, v = reduction.restrict.linear, reduction.embed.linear
        a, b, _ = _projected(layer, w_t, v)
        states = dissipative_states(a, b.unsqueeze(-1))
        w_t, v = torch.linalg.solve(states, w_t), v @ states
        a, b, c = _projected(layer, w_t, v)
        tensors = {"skew": (a - a.mT) / 2, "log_decay": torch.log(-a.diagonal()), "B": b, "C": c}
        maps = (
            Reset(("skew", "log_decay")),
            real_matrix_pullback("B", v, None),
            real_matrix_pullback("C", None, w_t),
        )
        return LayerUpdate(reduction.order, tensors, maps=maps)


def _continuous(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    return dissipative_matrix(double(layer, "skew"), double(layer, "log_decay")), double(layer, "B"), double(layer, "C")


def _projected(layer: nn.Module, restrict: Tensor, embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W^T A V, W^T B, C V."""
    a, b, c = _continuous(layer)
    return restrict @ a @ embed, restrict @ b, c @ embed


def _bank(layer: nn.Module, a: Tensor, b: Tensor, c: Tensor) -> StateSpace:
    a, b = sample_bilinear(a, b, double(layer, "log_dt").exp())
    return StateSpace(a, b.unsqueeze(-1), c.unsqueeze(-2), double(layer, "D")[:, None, None])
