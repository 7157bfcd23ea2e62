"""The adapter of the layer S5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import continuous_poles, log_poles, nearest_poles
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ScaledInputs, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.layers.s5 import S5
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampled, sample
from compressm.reduction.result import Reduction

_POLES = ("log_A_real", "A_imag", "log_step")
_INPUTS, _OUTPUTS = SplitWeights("B_re", "B_im"), SplitWeights("C_re", "C_im")


@register_adapter("compressm.layers.s5.S5")
class S5Adapter(StateSpaceAdapter):
    """y = 2 Re(C x) + D u with poles and input gains sampled from continuous poles with a step per state.

    Each new state takes over the step of the old state whose pole is nearest (in the ratio of decay rates and in
    angle), so that steps stay in their range and the continuous pole about where its neighbour's was; the pole
    becomes s = log(pole) / dt (zero-order hold) or 2 / dt (pole - 1) / (pole + 1) (bilinear).
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete system, with log(pole) exact from the parameters."""
        sampled = _sampled(layer)
        log_pole = torch.complex(-sampled.nu, sampled.theta)
        b, c = _gain(sampled).unsqueeze(-1) * _INPUTS.read(layer), 2 * _OUTPUTS.read(layer)
        return StateSpace(torch.exp(log_pole), b, c, torch.diag_embed(double(layer, "D")), log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S5: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, ((*_POLES, *_INPUTS.names), _OUTPUTS.names))
        system, rule, before = reduction.system, _s5(layer).discretization, _sampled(layer)
        origin = nearest_poles(log_poles(system, "S5"), torch.complex(-before.nu, before.theta))
        log_step = double(layer, "log_step")[origin]
        decay, frequency = continuous_poles(system, torch.exp(log_step), rule, "S5")
        gain = _gain(sample(decay, frequency, torch.exp(log_step), rule))
        tensors = {
            "log_A_real": torch.log(decay),
            "A_imag": frequency,
            "log_step": log_step,
            **_INPUTS.tensors(system.b / gain.unsqueeze(-1)),
            **_OUTPUTS.tensors(system.c / 2),
        }
        maps = (
            ScaledInputs(_INPUTS, reduction.embed, _gain(before), gain, system.b).pullback(),
            output_pullback(_OUTPUTS, reduction.restrict),
            Reset(_POLES),
        )
        return LayerUpdate(system.order, tensors, maps=maps)


def _s5(layer: nn.Module) -> S5:
    if not isinstance(layer, S5):
        raise AdapterError(f"{type(layer).__name__} is not compressm.layers.S5; register an adapter of its own.")
    return layer


def _sampled(layer: nn.Module) -> Sampled:
    decay, step = double(layer, "log_A_real").exp(), double(layer, "log_step").exp()
    return sample(decay, double(layer, "A_imag"), step, _s5(layer).discretization)


def _gain(sampled: Sampled) -> Tensor:
    return torch.complex(sampled.gain_re, sampled.gain_im)
