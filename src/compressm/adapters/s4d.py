"""The adapter of the layer S4D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import continuous_poles
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ExpandedWeights, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.layers.s4d import S4D
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampling, sample
from compressm.reduction.result import Reduction

_POLES = ("log_A_real", "A_imag")
_OUTPUTS = ExpandedWeights(SplitWeights("C_re", "C_im"), 1)


@register_adapter("compressm.layers.s4d.S4D")
class S4DAdapter(StateSpaceAdapter):
    """A bank of H systems y = 2 Re(C x) + D u with B = 1, sampled with one step for each channel.

    Each channel is reduced for itself, all to one order; the step sizes stay as they are. What is stored of the
    reduced channel is, for each pole, the product of its input and output weight: C = c b / (2 gain). A real pole
    keeps an imaginary part of C, which leaves the output as it is and lets the frequency train.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        log_pole, gain = _sampled(layer)
        b, c = gain.unsqueeze(-1), 2 * _OUTPUTS.read(layer)
        return StateSpace(torch.exp(log_pole), b, c, double(layer, "D")[:, None, None], log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced systems."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S4D: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, ((), (*_POLES, *_OUTPUTS.names)))
        system, step, rule = reduction.system, double(layer, "log_dt").exp()[:, None], _rule(layer)
        decay, frequency = continuous_poles(system, step, rule, "S4D")
        sampled = sample(decay, frequency, step, rule)
        b = system.b.mT  # (H, 1, r)
        scale = 2 * torch.complex(sampled.gain_re, sampled.gain_im).unsqueeze(1) / b  # c = scale * C
        tensors = {"log_A_real": torch.log(decay), "A_imag": frequency, **_OUTPUTS.tensors(system.c / scale)}
        two = torch.full((), 2.0, dtype=torch.float64)
        maps = (output_pullback(_OUTPUTS, reduction.restrict, two, scale), Reset(_POLES))
        return LayerUpdate(system.order, tensors, maps=maps)


def _rule(layer: nn.Module) -> Sampling:
    if not isinstance(layer, S4D):
        raise AdapterError(f"{type(layer).__name__} is not compressm.layers.S4D; register an adapter of its own.")
    return layer.discretization


def _sampled(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """log(pole) and input gain (H, n)."""
    step, decay = double(layer, "log_dt").exp()[:, None], double(layer, "log_A_real").exp()
    nu, theta, gain_re, gain_im = sample(decay, double(layer, "A_imag"), step, _rule(layer))
    return torch.complex(-nu, theta), torch.complex(gain_re, gain_im)
