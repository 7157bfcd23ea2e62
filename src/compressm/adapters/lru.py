"""The adapter of the linear recurrent unit."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.pullbacks import InputWeights, OutputWeights
from compressm.adapters.registry import register_adapter
from compressm.adapters.update import LayerUpdate, Reset, Select
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction

# The layer stores log(-log|pole|): a pole at 0 has no place. The smallest radius it is given changes h_l by at most
# |c b| 1e-6 for l > 0.
_SMALLEST_RADIUS = 1e-6
_LARGEST_LOG = math.log(1 - 2**-53)
_BY_ROW = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im")  # the dimension of the states
_BY_COLUMN = ("C_re", "C_im")

_logger = logging.getLogger(__name__)


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
            gain = _double(layer, "gamma_log").exp()
            b = gain.unsqueeze(-1) * torch.complex(_double(layer, "B_re"), _double(layer, "B_im"))
            c = torch.complex(_double(layer, "C_re"), _double(layer, "C_im"))
            d = torch.diag_embed(_double(layer, "D"))
        return StateSpace(torch.exp(log_pole), b, c, d, log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("LRU: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return self._select(layer, reduction.keep)
        system, log_pole = reduction.system, _log(reduction.system)
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
        old_gain = _double(layer, "gamma_log").exp()
        inputs = InputWeights("B_re", "B_im", "gamma_log", reduction.embed, old_gain, gain, system.b)
        outputs = OutputWeights("C_re", "C_im", reduction.restrict)
        maps = (inputs.pullback(), outputs.pullback(), Reset(("nu_log", "theta_log")))
        return LayerUpdate(system.order, tensors, maps=maps)

    @staticmethod
    def _select(layer: nn.Module, keep: Tensor) -> LayerUpdate:
        maps = tuple(Select(names, keep, dim) for dim, names in enumerate((_BY_ROW, _BY_COLUMN)))
        tensors = {
            name: torch.index_select(
                layer.get_parameter(name).detach(), m.dim, keep.to(layer.get_parameter(name).device)
            )
            for m in maps
            for name in m.names
        }
        return LayerUpdate(len(keep), tensors, maps=maps)

    @staticmethod
    def _log_poles(layer: nn.Module) -> Tensor:
        return torch.complex(-_double(layer, "nu_log").exp(), _double(layer, "theta_log").exp())


def _log(system: StateSpace) -> Tensor:
    if system.log_a is not None:
        return system.log_a
    radius, angle = system.a.abs(), torch.angle(system.a)
    small = int((radius < _SMALLEST_RADIUS).sum())
    if small:
        _logger.info("LRU: %d poles nearer to 0 than %g were moved out to it", small, _SMALLEST_RADIUS)
    return torch.complex(torch.log(radius.clamp_min(_SMALLEST_RADIUS)).clamp_max(_LARGEST_LOG), angle)


def _double(layer: nn.Module, name: str) -> Tensor:
    value: Tensor = getattr(layer, name)
    return value.detach().to("cpu", torch.float64)
