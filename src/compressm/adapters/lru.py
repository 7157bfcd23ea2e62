"""The adapter of the linear recurrent unit."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import log_poles
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ComplexWeights, ScaledInputs, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction

_POLES = ("nu_log", "theta_log")


class RingAdapter(StateSpaceAdapter):
    """pole = exp(-exp(nu_log) + i exp(theta_log)), B = exp(gamma_log) weights, y = Re(C x) + D u.

    Written back with gamma = sqrt(1 - |pole|^2) as at the layer's start, and angles in (0, 2 pi]: a positive real pole
    has the angle 2 pi, because its logarithm exists. A pole nearer to 0 than 1e-6 is moved out to 1e-6.
    """

    form = Form.DIAGONAL
    input_weights: ComplexWeights
    output_weights: ComplexWeights

    @abstractmethod
    def feedthrough(self, layer: nn.Module) -> Tensor:
        """D `(p, m)` in double precision."""

    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's system, with log(pole) exact from its parameters."""
        with torch.no_grad():
            log_pole = torch.complex(-double(layer, "nu_log").exp(), double(layer, "theta_log").exp())
            b = double(layer, "gamma_log").exp().unsqueeze(-1) * self.input_weights.read(layer)
            c, d = self.output_weights.read(layer), self.feedthrough(layer)
        return StateSpace(torch.exp(log_pole), b, c, d, log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        name = type(layer).__name__
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError(f"{name}: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            rows = (*_POLES, "gamma_log", *self.input_weights.names)
            return select_update(layer, reduction.keep, (rows, self.output_weights.names))
        system, log_pole = reduction.system, log_poles(reduction.system, name)
        nu, theta = -log_pole.real, torch.remainder(log_pole.imag, 2 * torch.pi)
        theta = torch.where(theta > 0, theta, torch.full_like(theta, 2 * torch.pi))
        gain = (-torch.expm1(-2 * nu)).sqrt()
        tensors = {
            "nu_log": torch.log(nu),
            "theta_log": torch.log(theta),
            "gamma_log": torch.log(gain),
            **self.input_weights.tensors(system.b / gain.unsqueeze(-1)),
            **self.output_weights.tensors(system.c),
        }
        old_gain = double(layer, "gamma_log").exp()
        inputs = ScaledInputs(self.input_weights, reduction.embed, old_gain, gain, system.b, "gamma_log")
        outputs = output_pullback(self.output_weights, reduction.restrict)
        return LayerUpdate(system.order, tensors, maps=(inputs.pullback(), outputs, Reset(_POLES)))


@register_adapter("compressm.layers.lru.LRU")
class LRUAdapter(RingAdapter):
    """The library's own layer: real parameters B_re, B_im, C_re, C_im and a diagonal D."""

    input_weights = SplitWeights("B_re", "B_im")
    output_weights = SplitWeights("C_re", "C_im")

    def feedthrough(self, layer: nn.Module) -> Tensor:
        """diag(D)."""
        return torch.diag_embed(double(layer, "D"))
