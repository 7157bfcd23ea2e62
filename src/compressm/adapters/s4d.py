"""The adapter of the layer S4D."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import continuous_poles
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ComplexWeights, ExpandedWeights, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.layers.s4d import S4D
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampling, sample
from compressm.reduction.result import Reduction


class S4DFormAdapter(StateSpaceAdapter):
    """A bank of H systems y = 2 Re(C x) + D u with B = 1, sampled with one step for each channel.

    Each channel is reduced for itself, all to one order; the step sizes stay as they are. What is stored of the
    reduced channel is, for each pole, the product of its input and output weight: C = c b / (2 gain). A real pole
    keeps an imaginary part of C, which leaves the output as it is and lets the frequency train.
    """

    form = Form.DIAGONAL
    prefix = ""  # where the parameters of the systems are, with its dot; D is the layer's own
    outputs: ComplexWeights  # C (H, 1, n)

    def feedthrough(self, layer: nn.Module) -> Tensor | None:
        """D (H, 1, 1), None where the layer has none."""
        return double(layer, "D")[:, None, None]

    @abstractmethod
    def rule(self, layer: nn.Module) -> Sampling:
        """How the layer samples; AdapterError where that is not known."""

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        log_pole, gain = self._sampled(layer)
        b, c = gain.unsqueeze(-1), 2 * self.outputs.read(layer)
        return StateSpace(torch.exp(log_pole), b, c, self.feedthrough(layer), log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced systems."""
        name, poles = type(layer).__name__, (f"{self.prefix}log_A_real", f"{self.prefix}A_imag")
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError(f"{name}: a reduction without maps between old and new states cannot be written.")
        attributes = self.prepare(layer, reduction.order)
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, ((), (*poles, *self.outputs.names)), attributes)
        system, step, rule = reduction.system, self._step(layer), self.rule(layer)
        decay, frequency = continuous_poles(system, step, rule, name)
        sampled = sample(decay, frequency, step, rule)
        b = system.b.mT  # (H, 1, r)
        scale = 2 * torch.complex(sampled.gain_re, sampled.gain_im).unsqueeze(1) / b  # c = scale * C
        tensors = {poles[0]: torch.log(decay), poles[1]: frequency, **self.outputs.tensors(system.c / scale)}
        two = torch.full((), 2.0, dtype=torch.float64)
        maps = (output_pullback(self.outputs, reduction.restrict, two, scale), Reset(poles))
        return LayerUpdate(system.order, tensors, attributes, maps)

    def _step(self, layer: nn.Module) -> Tensor:
        return double(layer, f"{self.prefix}log_dt").exp()[:, None]

    def _sampled(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """log(pole) and input gain (H, n)."""
        decay, frequency = double(layer, f"{self.prefix}log_A_real").exp(), double(layer, f"{self.prefix}A_imag")
        nu, theta, gain_re, gain_im = sample(decay, frequency, self._step(layer), self.rule(layer))
        return torch.complex(-nu, theta), torch.complex(gain_re, gain_im)


@register_adapter("compressm.layers.s4d.S4D")
class S4DAdapter(S4DFormAdapter):
    """The library's own layer."""

    outputs = ExpandedWeights(SplitWeights("C_re", "C_im"), 1)

    def rule(self, layer: nn.Module) -> Sampling:
        """The layer's `discretization`."""
        if not isinstance(layer, S4D):
            raise AdapterError(f"{type(layer).__name__} is not compressm.layers.S4D; register an adapter of its own.")
        return layer.discretization
