"""The adapter of the linear recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import log_poles
from compressm.adapters.pullbacks import InputWeights, OutputWeights
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction

_BY_ROW = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im")  # the dimension of the states
_BY_COLUMN = ("C_re", "C_im")


@register_adapter("compressm.layers.lru.LRU")
class LRUAdapter(StateSpaceAdapter):
    """pole = exp(-exp(nu_log) + i exp(theta_log)), B = exp(gamma_log) (B_re + i B_im), y = Re(C x) + D u.

    Written back with gamma = sqrt(1 - |pole|^2) as at the layer's start, and angles in (0, 2 pi]: a positive real pole
    has the angle 2 pi, because its logarithm exists. A pole nearer to 0 than 1e-6 is moved out to 1e-6.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's system, with log(pole) exact from its parameters."""
        with torch.no_grad():
            log_pole = self._log_poles(layer)
            gain = double(layer, "gamma_log").exp()
            b = gain.unsqueeze(-1) * torch.complex(double(layer, "B_re"), double(layer, "B_im"))
            c = torch.complex(double(layer, "C_re"), double(layer, "C_im"))
            d = torch.diag_embed(double(layer, "D"))
        return StateSpace(torch.exp(log_pole), b, c, d, log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("LRU: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, (_BY_ROW, _BY_COLUMN))
        system, log_pole = reduction.system, log_poles(reduction.system, "LRU")
        nu, theta = -log_pole.real, torch.remainder(log_pole.imag, 2 * torch.pi)
        theta = torch.where(theta > 0, theta, torch.full_like(theta, 2 * torch.pi))
        gain = (-torch.expm1(-2 * nu)).sqrt()
        b = system.b / gain.unsqueeze(-1)
        tensors = {
            "nu_log": torch.log(nu),
            "theta_log": torch.log(theta),
            "gamma_log": torch.log(gain),
            "B_re": b.real.clone(),
            "B_im": b.imag.clone(),
            "C_re": system.c.real.clone(),
            "C_im": system.c.imag.clone(),
        }
        old_gain = double(layer, "gamma_log").exp()
        inputs = InputWeights("B_re", "B_im", "gamma_log", reduction.embed, old_gain, gain, system.b)
        outputs = OutputWeights("C_re", "C_im", reduction.restrict)
        maps = (inputs.pullback(), outputs.pullback(), Reset(("nu_log", "theta_log")))
        return LayerUpdate(system.order, tensors, maps=maps)

    @staticmethod
    def _log_poles(layer: nn.Module) -> Tensor:
        return torch.complex(-double(layer, "nu_log").exp(), double(layer, "theta_log").exp())
