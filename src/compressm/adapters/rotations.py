"""The adapter of the layer of scaled rotations."""

from __future__ import annotations

import torch
from torch import nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import log_poles
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ScaledInputs, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction

_POLES = ("nu_log", "theta")
_INPUTS, _OUTPUTS = SplitWeights("B_1", "B_2"), SplitWeights("C_1", "C_2", -1.0)


@register_adapter("compressm.layers.rotations.RotationSSM")
class RotationAdapter(StateSpaceAdapter):
    """pole = rho e^{i theta}, b = B_1 + i B_2, y = Re((C_1 - i C_2) z): a complex diagonal system in real form.

    A pole nearer to 0 than 1e-6 is moved out to 1e-6. A real pole takes a whole block, as it takes a whole state of
    the complex system.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's system, with log(pole) exact from its parameters."""
        log_pole = torch.complex(-double(layer, "nu_log").exp(), double(layer, "theta"))
        d = torch.diag_embed(double(layer, "D"))
        return StateSpace(torch.exp(log_pole), _INPUTS.read(layer), _OUTPUTS.read(layer), d, log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("RotationSSM: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, ((*_POLES, *_INPUTS.names), _OUTPUTS.names))
        system, log_pole = reduction.system, log_poles(reduction.system, "RotationSSM")
        tensors = {
            "nu_log": torch.log(-log_pole.real),
            "theta": log_pole.imag.clone(),
            **_INPUTS.tensors(system.b),
            **_OUTPUTS.tensors(system.c),
        }
        one, new = torch.ones(1, dtype=torch.float64), torch.ones(system.order, dtype=torch.float64)
        inputs = ScaledInputs(_INPUTS, reduction.embed, one, new, system.b).pullback()
        return LayerUpdate(
            system.order, tensors, maps=(inputs, output_pullback(_OUTPUTS, reduction.restrict), Reset(_POLES))
        )
