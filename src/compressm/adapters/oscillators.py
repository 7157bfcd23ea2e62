"""The adapter of layers of oscillators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate
from compressm.errors import AdapterError
from compressm.layers.oscillators import DampedLinOSS, LinOSS, Oscillation
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules


class OscillatorFormAdapter(StateSpaceAdapter):
    """One complex state an oscillator: pole e^{-nu + i theta}, b = B, c = gain (1 - i cot(theta)) C.

    An oscillator is forced and read in one fixed way, and its poles are not free (those of LinOSS lie on a curve), so
    that the layer stores a choice of its oscillators and no other system.
    """

    form = Form.SELECTION
    oscillator_parameters: Sequence[str]

    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's system, with log(pole) exact from its parameters."""
        oscillation = self._oscillation(layer)
        log_pole = torch.complex(-oscillation.nu, oscillation.theta)
        b, c = double(layer, "B"), _readout(oscillation) * double(layer, "C")
        return StateSpace(torch.exp(log_pole), b, c, torch.diag_embed(double(layer, "D")), log_a=log_pole)

    def selection(self, layer: nn.Module) -> SelectionRules:
        """C of the kept oscillators may be fitted anew, each column a real one times what reads the position."""
        return SelectionRules(refit_outputs=True, output_direction=_readout(self._oscillation(layer)))

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the oscillators that are kept, and their output weights."""
        if reduction.keep is None:
            raise AdapterError(f"{type(layer).__name__} stores a choice of its oscillators and no other system.")
        update = select_update(layer, reduction.keep, ((*self.oscillator_parameters, "B"), ("C",)))
        if not reduction.refitted:
            return update
        c = (reduction.system.c / _readout(self._oscillation(layer))[reduction.keep]).real.clone()
        return replace(update, tensors={**update.tensors, "C": c})

    @staticmethod
    def _oscillation(layer: nn.Module) -> Oscillation:
        if not isinstance(layer, LinOSS | DampedLinOSS):
            raise AdapterError(f"{type(layer).__name__} is no layer of oscillators; register an adapter of its own.")
        with torch.no_grad():
            nu, theta, gain = layer.oscillation()
        return Oscillation(*(t.detach().to("cpu", torch.float64) for t in (nu, theta, gain)))


@register_adapter("compressm.layers.oscillators.LinOSS")
class LinOSSAdapter(OscillatorFormAdapter):
    """LinOSS; with `Rule.IMEX` every pole lies on the unit circle."""

    oscillator_parameters = ("A", "step_size")


@register_adapter("compressm.layers.oscillators.DampedLinOSS")
class DampedLinOSSAdapter(OscillatorFormAdapter):
    """D-LinOSS."""

    oscillator_parameters = ("A", "G", "step_size")


def _readout(oscillation: Oscillation) -> Tensor:
    """The output weight `(P,)` of an oscillator's complex state whose real part is its position."""
    return torch.complex(oscillation.gain, -oscillation.gain / torch.tan(oscillation.theta))
