"""DSS of its authors' repository (ag1988/dss): diagonal systems with continuous poles in common."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.registry import register_signature
from compressm.adapters.selecting import select_update
from compressm.adapters.thirdparty.surroundings import Convolution, is_bidirectional
from compressm.adapters.update import LayerUpdate
from compressm.adapters.weights import PermutedWeights, ViewedWeights
from compressm.checks import require_integer
from compressm.errors import AdapterError
from compressm.linalg.elementary import complex_expm1
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules

_AROUND = Convolution("activation", "kernel.W")
_OUTPUTS = PermutedWeights(ViewedWeights("kernel.W"), (1, 0, 2))  # stored (p, H, n), as (H, p, n)
_POLES = (
    {"kernel.Lambda_log_neg_re": "n", "kernel.Lambda_im": "n"},
    {"kernel.Lambda_log_neg_re": "n", "kernel.Lambda_log_im": "n"},
    {"kernel.Lambda": "n 2"},
)
_STEPS = ("h", "h 2")  # one for each channel, or one for real and one for imaginary parts
_VERSIONS = ("softmax", "exp", "exp-re-im", "exp-no-scale", "clip", "clip-no-scale")
_LEAST = 1e-7  # of |s|^2, where the repository divides by s


class DSSKernelAdapter(StateSpaceAdapter):
    """`DSS` around `DSSKernel`: y = Re(W x) + D u with the poles e^{z_h}, z_h = Re(s) d_h + i Im(s) d'_h.

    The input gains are (e^{z} - 1) / s, or 1 in the versions without a scale. No channel can have poles of its own, so
    all keep one choice of their states; W is fitted anew. A convolution with D u added goes into the submodule
    `activation`; gradients are captured there.

    The version "softmax" divides each state's input gain by e^{z L} - 1 for the length L of the input, so that it is a
    different system for each length. It is cut as the one for `length`, the length of the sequences that matter::

        compress_(model, settings, adapters={DSS: DSSKernelAdapter(length=1024)})

    Without it AdapterError is raised.
    """

    form = Form.SELECTION

    def __init__(self, length: int | None = None) -> None:
        if length is not None:
            require_integer("length", length, 1)
        self._length = length

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        log_pole, gain = self._sampled(layer)
        c, d = _OUTPUTS.read(layer), _AROUND.feedthrough(layer)
        return StateSpace(torch.exp(log_pole), gain.unsqueeze(-1), c, d, log_a=log_pole)

    def selection(self, layer: nn.Module) -> SelectionRules:
        """One keep-set for all channels; B is fixed by the poles."""
        return SelectionRules(shared=True, refit_outputs=True)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the kept states; only the products of input and output weights matter."""
        if reduction.keep is None or reduction.keep.ndim != 1:
            raise AdapterError("DSS stores a choice of its present states, the same in all channels, and nothing else.")
        poles = _pole_names(layer)
        update = select_update(layer, reduction.keep, (poles, (), _OUTPUTS.names), self.prepare(layer, reduction.order))
        if not reduction.refitted:
            return update
        gain = self._sampled(layer)[1][:, None, reduction.keep]
        weights = _OUTPUTS.tensors(reduction.system.c * reduction.system.b.mT / gain)
        return LayerUpdate(update.order, {**update.tensors, **weights}, update.attributes, update.maps)

    def tap(self, layer: nn.Module) -> nn.Module:
        """`activation`."""
        return _AROUND.tap(layer)

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; the layer ignores all others."""
        return _AROUND.inputs(layer, args[:1] or (kwargs.get("u"),), {})

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """`(batch, L, H p)`, for a bidirectional layer `(2 batch, L, H 2 p)`."""
        return _AROUND.arranged(layer, value)

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """What goes into `activation`, without dropout; under softmax of an input of the length that is read."""
        if _version(layer) != "softmax":
            return _AROUND.response(layer, u)
        length = u.shape[1]
        u = nn.functional.pad(u, (0, 0, 0, max(0, self._softmax_length(layer) - length)))
        return _AROUND.response(layer, u)[:, :length]

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The number of states, where layer and kernel keep it."""
        kernel = layer.get_submodule("kernel")
        return {name: order for name, owner in (("n", layer), ("kernel.N", kernel)) if name[-1] in vars(owner)}

    def _sampled(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """log(pole) and input gain (H, n)."""
        version, s = _version(layer), _poles(layer)
        step = double(layer, "kernel.log_dt").exp()
        step = step.unsqueeze(-1).expand(-1, 2) if step.ndim == 1 else step
        z = torch.complex(step[:, :1] * s.real, step[:, 1:] * s.imag)
        if version.endswith("no-scale"):
            return z, torch.ones_like(z)
        if version != "softmax":
            return z, complex_expm1(z) * s.conj() / s.abs().square().clamp_min(_LEAST)
        divisor = complex_expm1(z * self._softmax_length(layer)) * s
        return z, complex_expm1(z) * divisor.conj() / (divisor.abs().square() + _number(layer, "epsilon", _LEAST))

    def _softmax_length(self, layer: nn.Module) -> int:
        name = type(layer).__name__
        if self._length is None or is_bidirectional(layer):
            found = "runs both ways" if is_bidirectional(layer) else "no length was given"
            raise AdapterError(
                f"{name} with version='softmax' scales its kernel by the length of the input, so that it is one system "
                f"for a length only, in one direction; {found}. Give the length of your sequences, adapters={{{name}: "
                f"DSSKernelAdapter(length=...)}}, build it with version='exp', or leave it alone with "
                f"adapters={{{name}: None}}."
            )
        limit = vars(layer).get("max_kernel_length")
        return min(self._length, limit) if isinstance(limit, int) and limit else self._length


def _version(layer: nn.Module) -> str:
    """The kernel's version; that of the first release, which does not say, is softmax."""
    version = vars(layer.get_submodule("kernel")).get("version", "softmax")
    if version not in _VERSIONS:
        name = type(layer).__name__
        raise AdapterError(
            f"{name} has version={version!r}; known are {', '.join(_VERSIONS)}. Leave it alone with "
            f"adapters={{{name}: None}}."
        )
    return str(version)


def _number(layer: nn.Module, option: str, default: float) -> float:
    value = vars(layer.get_submodule("kernel")).get(option, default)
    if not isinstance(value, int | float):
        raise AdapterError(f"{type(layer).__name__} has {option}={value!r}; wanted a number.")
    return float(value)


def _pole_names(layer: nn.Module) -> tuple[str, ...]:
    kernel = layer.get_submodule("kernel")
    own = {**kernel._parameters, **kernel._buffers}
    return next(tuple(names) for names in _POLES if all(name.rpartition(".")[2] in own for name in names))


def _poles(layer: nn.Module) -> Tensor:
    """The continuous poles s (n)."""
    names = _pole_names(layer)
    if len(names) == 1:
        re, im = double(layer, names[0]).unbind(-1)
        if _version(layer).startswith("clip"):
            re = re.clip(max=_number(layer, "max_real_Lambda", 1e-4))
        return torch.complex(re, im)
    im = double(layer, names[1])
    return torch.complex(-double(layer, names[0]).exp(), im.exp() if names[1].endswith("log_im") else im)


for _poles_shapes, _step_shape in product(_POLES, _STEPS):
    register_signature({"kernel.W": "p h n 2", "kernel.log_dt": _step_shape, **_poles_shapes, **_AROUND.shapes()})(
        DSSKernelAdapter
    )
