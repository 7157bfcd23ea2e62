"""The adapter of the layer DSS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate
from compressm.adapters.weights import ExpandedWeights, SplitWeights
from compressm.errors import AdapterError
from compressm.layers.dss import DSS, sample_kernel
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules

_POLES = ("log_A_real", "A_imag")
_OUTPUTS = ExpandedWeights(SplitWeights("C_re", "C_im"), 1)


@register_adapter("compressm.layers.dss.DSS")
class DSSAdapter(StateSpaceAdapter):
    """A bank of H systems y = Re(C x) + D u whose poles e^{s d_h} have the continuous poles s in common.

    A general change of states would give each channel poles of its own, which the layer cannot store. So it keeps a
    choice of its states, one for all channels; their output weights may be fitted anew.
    `compressm.convert.convert_` makes it a layer with poles for each channel, for balancing.
    """

    form = Form.SELECTION

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        log_pole, gain = _sampled(layer)
        c, d = _OUTPUTS.read(layer), double(layer, "D")[:, None, None]
        return StateSpace(torch.exp(log_pole), gain.unsqueeze(-1), c, d, log_a=log_pole)

    def selection(self, layer: nn.Module) -> SelectionRules:
        """One keep-set for all channels; B is fixed by the poles."""
        return SelectionRules(shared=True, refit_outputs=True)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the kept states; only the products of input and output weights matter."""
        if reduction.keep is None or reduction.keep.ndim != 1:
            raise AdapterError("DSS stores a choice of its present states, the same in all channels, and nothing else.")
        update = select_update(layer, reduction.keep, (_POLES, _OUTPUTS.names))
        if not reduction.refitted:
            return update
        gain = _sampled(layer)[1][:, None, reduction.keep]
        weights = _OUTPUTS.tensors(reduction.system.c * reduction.system.b.mT / gain)
        return LayerUpdate(update.order, {**update.tensors, **weights}, maps=update.maps)


def _sampled(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """log(pole) and input gain (H, n)."""
    if not isinstance(layer, DSS):
        raise AdapterError(f"{type(layer).__name__} is not compressm.layers.DSS; register an adapter of its own.")
    decay, step = double(layer, "log_A_real").exp(), double(layer, "log_dt").exp()
    nu, theta, gain_re, gain_im = sample_kernel(
        decay, double(layer, "A_imag"), step, layer.discretization, layer.length
    )
    return torch.complex(-nu, theta), torch.complex(gain_re, gain_im)
