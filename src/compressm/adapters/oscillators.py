"""The adapter of layers of oscillators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

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
        nu, theta, gain = self._oscillation(layer)
        log_pole = torch.complex(-nu, theta)
        b, c = double(layer, "B"), double(layer, "C")
        c = torch.complex(gain, -gain / torch.tan(theta)) * c
        return StateSpace(torch.exp(log_pole), b, c, torch.diag_embed(double(layer, "D")), log_a=log_pole)

    def selection(self, layer: nn.Module) -> SelectionRules:
        """The weights are real and the state is complex, so that weights fitted anew could not be stored."""
        return SelectionRules(refit_inputs=False, refit_outputs=False)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the oscillators that are kept."""
        if reduction.keep is None:
            raise AdapterError(f"{type(layer).__name__} stores a choice of its oscillators only; use ModalTruncation.")
        return select_update(layer, reduction.keep, ((*self.oscillator_parameters, "B"), ("C",)))

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
