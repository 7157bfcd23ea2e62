"""The adapter of the layer S4."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import continuous_poles
from compressm.adapters.pullbacks import typical
from compressm.adapters.registry import register_adapter
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Pullback, Reset
from compressm.adapters.weights import ExpandedWeights, SplitWeights, output_pullback
from compressm.errors import AdapterError
from compressm.layers.s4 import S4
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampling, sample
from compressm.reduction.result import Reduction

_POLES, _LOW_RANK = ("log_A_real", "A_imag"), ("P_re", "P_im")
_INPUTS = ExpandedWeights(SplitWeights("B_re", "B_im"), 2)
_OUTPUTS = ExpandedWeights(SplitWeights("C_re", "C_im"), 1)

_logger = logging.getLogger(__name__)


@register_adapter("compressm.layers.s4.S4")
class S4Adapter(StateSpaceAdapter):
    """A bank of H systems y = Re(C x) + D u with a diagonal plus low-rank state matrix, until it is cut.

    Each channel is reduced for itself and stored in diagonal form: P loses its row, which is logged, and the layer
    goes on as a diagonal one. The step sizes stay as they are.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems: dense, or diagonal after a cut."""
        s4, d = _s4(layer), double(layer, "D")[:, None, None]
        if s4.is_diagonal:
            log_pole, gain = _sampled(s4)
            b = gain.unsqueeze(-1) * _INPUTS.read(layer)
            return StateSpace(torch.exp(log_pole), b, _OUTPUTS.read(layer), d, log_a=log_pole)
        with torch.no_grad():
            a, b, c = (t.to("cpu", torch.complex128) for t in s4.sampled())
        return StateSpace(a, b.unsqueeze(-1), c.unsqueeze(-2), d)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced systems, in diagonal form."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S4: a reduction without maps between old and new states cannot be written.")
        s4 = _s4(layer)
        if reduction.keep is not None:
            if not s4.is_diagonal:
                raise AdapterError("S4: its states act on each other, so a choice of them cannot be kept; balance it.")
            return select_update(layer, reduction.keep, ((), (*_POLES, *_INPUTS.names, *_OUTPUTS.names)))
        if not s4.is_diagonal:
            _logger.info("S4: from this cut on the layer is diagonal; its low-rank part is gone")
        system, step = reduction.system, double(layer, "log_dt").exp()[:, None]
        decay, frequency = continuous_poles(system, step, Sampling.BILINEAR, "S4")
        gain = _gain(decay, frequency, step).unsqueeze(-1)
        tensors = {
            "log_A_real": torch.log(decay),
            "A_imag": frequency,
            **{name: system.b.real.new_zeros(0, *decay.shape) for name in _LOW_RANK},
            **_INPUTS.tensors(system.b / gain),
            **_OUTPUTS.tensors(system.c),
        }
        old = _sampling_matrix(s4)

        def covectors(before: Mapping[str, Tensor]) -> dict[str, Tensor]:
            g = torch.linalg.solve(old.mH, _INPUTS.value(before))
            return _INPUTS.tensors(embed.adjoint(g) * gain.conj())

        def variances(before: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: typical(before[name], 1, system.order) for name in _INPUTS.names}

        embed = reduction.embed
        maps = (
            Pullback(_INPUTS.names, covectors, variances),
            output_pullback(_OUTPUTS, reduction.restrict),
            Reset((*_POLES, *_LOW_RANK)),
        )
        return LayerUpdate(system.order, tensors, maps=maps)


def _s4(layer: nn.Module) -> S4:
    if not isinstance(layer, S4):
        raise AdapterError(f"{type(layer).__name__} is not compressm.layers.S4; register an adapter of its own.")
    return layer


def _sampled(layer: S4) -> tuple[Tensor, Tensor]:
    """log(pole) and input gain (H, n) of a diagonal layer."""
    decay, frequency = double(layer, "log_A_real").exp(), double(layer, "A_imag")
    step = double(layer, "log_dt").exp()[:, None]
    nu, theta, _, _ = sample(decay, frequency, step, Sampling.BILINEAR)
    return torch.complex(-nu, theta), _gain(decay, frequency, step)


def _gain(decay: Tensor, frequency: Tensor, step: Tensor) -> Tensor:
    _, _, gain_re, gain_im = sample(decay, frequency, step, Sampling.BILINEAR)
    return torch.complex(gain_re, gain_im)


def _sampling_matrix(layer: S4) -> Tensor:
    """M (H, n, n) with Bd = M B: (I - d/2 A)^{-1} d = (Ad + I) d / 2."""
    if layer.is_diagonal:
        return torch.diag_embed(_sampled(layer)[1])
    with torch.no_grad():
        a = layer.sampled()[0].to("cpu", torch.complex128)
    eye = torch.eye(layer.order, dtype=a.dtype)
    return (a + eye) * (double(layer, "log_dt").exp() / 2)[:, None, None]
