"""The adapter of the layer LSSL."""

from __future__ import annotations

from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.pullbacks import real_matrix_pullback
from compressm.adapters.registry import register_adapter
from compressm.adapters.update import LayerUpdate
from compressm.errors import AdapterError
from compressm.layers.lssl import sample_bilinear
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction


@register_adapter("compressm.layers.lssl.LSSL")
class LSSLAdapter(StateSpaceAdapter):
    """A bank of H systems with A and B in common, sampled with a step for each channel.

    One similarity of the continuous system serves all channels: A' = W^T A V, B' = W^T B, C' = C V. The
    controllability Gramian of the bilinear sampling is that of the continuous system times the step, so all channels
    have one up to a factor; the observability Gramian depends on the step, since C is not sampled along. W and V come
    from the mean of P and the sum of Q over the channels. No error bound holds; the error is reported as measured.
    """

    form = Form.SHARED

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems."""
        return _bank(layer, double(layer, "A"), double(layer, "B"), double(layer, "C"))

    def projected(self, layer: nn.Module, restrict: Tensor, embed: Tensor) -> StateSpace:
        """The discrete systems of the projected continuous one."""
        return _bank(layer, *_projected(layer, restrict, embed))

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The matrices of the projected continuous system."""
        if reduction.restrict is None or reduction.embed is None or reduction.restrict.linear.ndim != 2:
            raise AdapterError("LSSL: only a reduction with one pair of maps for all channels can be written.")
        w_t, v = reduction.restrict.linear, reduction.embed.linear
        a, b, c = _projected(layer, w_t, v)
        maps = (
            real_matrix_pullback("A", v, w_t),
            real_matrix_pullback("B", v, None),
            real_matrix_pullback("C", None, w_t),
        )
        return LayerUpdate(reduction.order, {"A": a, "B": b, "C": c}, maps=maps)


def _projected(layer: nn.Module, restrict: Tensor, embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W^T A V, W^T B, C V."""
    return restrict @ double(layer, "A") @ embed, restrict @ double(layer, "B"), double(layer, "C") @ embed


def _bank(layer: nn.Module, a: Tensor, b: Tensor, c: Tensor) -> StateSpace:
    a, b = sample_bilinear(a, b, double(layer, "log_dt").exp())
    return StateSpace(a, b.unsqueeze(-1), c.unsqueeze(-2), double(layer, "D")[:, None, None])
