"""S4 and S4D in the full form of the S4 repository (models/s4/s4.py): a convolution with a kernel module inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double, held
from compressm.adapters.poles import continuous_poles, log_poles, nearest_poles
from compressm.adapters.registry import register_signature
from compressm.adapters.selecting import select_update
from compressm.adapters.tapping import Tapped
from compressm.adapters.thirdparty.convolutions import evaluated, facing, system_input
from compressm.adapters.thirdparty.transforms import Transform
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import PermutedWeights, ScaledInputs, ViewedWeights, output_pullback
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampled, Sampling, sample
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules

DECAY, FREQUENCY, STEP = "kernel.A_real", "kernel.A_imag", "kernel.inv_dt"
INPUTS = PermutedWeights(ViewedWeights("kernel.B"), (1, 2, 0))  # stored (1, S, n), as (S, n, 1)
OUTPUTS = PermutedWeights(ViewedWeights("kernel.C"), (1, 0, 2))  # stored (p, H, n), as (H, p, n)
SHAPES = {
    "kernel.C": "p h n 2",
    "kernel.inv_dt": "h d",
    "D": "q h",
    "drop": "module",
}
OWN = {"kernel.B": "1 h n 2", "kernel.A_real": "h n", "kernel.A_imag": "h n"}  # a state matrix for each channel
TIED = {"kernel.B": "1 s n 2", "kernel.A_real": "s n", "kernel.A_imag": "s n"}  # channel h has that of row h mod S


class KernelAdapter(StateSpaceAdapter):
    """`FFTConv` (inside `S4Block`) around a kernel: s = -T(A_real) - i A_imag, step T'(inv_dt), y = 2 Re(C x) + D u.

    `kernel.real_transform` and `kernel.dt_transform` name T and T'; with `kernel.dt_fast` the step is T'(sinh(inv_dt)).
    The step is one for each channel or one for each state. A kernel with p outputs gives each channel p outputs. The
    convolution with D u added goes into the submodule `drop` as `(batch, p H, L)`; gradients are captured there.

    With `bidirectional` the second half of the kernel's outputs runs backwards in time, from the next step on, and is
    added to the first. It is read as further outputs; what is balanced and reported on is that system, and the layer's
    own H-infinity error is at most twice the reported one. Each captured sequence counts twice, as it is and reversed.

    What `setup_step` leaves for stepping is not changed: call it again after a cut, as after any change of weights.
    """

    def tap(self, layer: nn.Module) -> nn.Module:
        """`drop`."""
        return layer.get_submodule("drop")

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; AdapterError for a call with a state or a rate other than 1."""
        u = system_input(layer, args, kwargs)
        return (torch.cat([u, u.flip(1)]) if is_bidirectional(layer) else u), None

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """`(batch, L, H p)`; with `bidirectional` `(2 batch, L, H 2 p)`, first for what runs forwards."""
        value = self._by_channel(layer, value)
        if not is_bidirectional(layer):
            return value
        value = value.unflatten(-1, (held(layer, "D").shape[1], -1))
        later = nn.functional.pad(value.flip(1)[:, 1:], (0, 0, 0, 0, 0, 1))
        forwards, backwards = torch.cat([value, torch.zeros_like(value)], -1), torch.cat([0 * later, later], -1)
        return torch.cat([forwards, backwards]).flatten(-2)

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """What goes into `drop`, without dropout of the kernel; with `bidirectional` each half for itself."""
        with evaluated(layer):
            if not is_bidirectional(layer):
                return self.passed(layer, u)
            with _half(layer, 0):
                forwards = self.passed(layer, u)
            with _half(layer, 1):
                u = nn.functional.pad(u, (0, 0, 0, 1)).flip(1)
                backwards = self.passed(layer, u).flip(1)[:, 1:]
            both = [y.unflatten(-1, (held(layer, "D").shape[1], -1)) for y in (forwards, backwards)]
            return torch.cat(both, -1).flatten(-2)

    def passed(self, layer: nn.Module, u: Tensor) -> Tensor:
        """What goes into `drop` for an input `(batch, L, H)`, as `(batch, L, H p)`."""
        with Tapped(self.tap(layer), layer) as tapped:
            type(layer).forward(layer, facing(layer, u))
            return self._by_channel(layer, tapped.take())

    def _by_channel(self, layer: nn.Module, value: Tensor) -> Tensor:
        """What is (p, H) or, with `swap_channels`, (H, p) channels, as `(batch, L, H p)`."""
        if not vars(layer).get("swap_channels", False):
            value = value.unflatten(1, (held(layer, "D").shape[0], -1)).transpose(1, 2).flatten(1, 2)
        return value.mT

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The number of stored states, where the kernel keeps it."""
        return {"kernel.N": order} if "N" in vars(layer.get_submodule("kernel")) else {}


@register_signature({**SHAPES, **OWN})
class S4KernelAdapter(KernelAdapter):
    """`SSMKernelDiag` with a state matrix for each channel: a bank of diagonal systems, reduced each for itself.

    Zero-order hold or bilinear. Where each state has a step, each new one takes over that of the nearest old one of its
    channel; otherwise the steps stay as they are.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        return read_diagonal(layer, rule_of(layer))

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced systems."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S4D: a reduction without maps between old and new states cannot be written.")
        if reduction.keep is not None:
            return select_kernel(layer, reduction.keep, self.prepare(layer, reduction.order))
        system, rule = reduction.system, rule_of(layer)
        sampled, tensors = write_poles(layer, system, rule)
        gain, weights = gain_of(sampled), {**OUTPUTS.tensors(system.c / 2)}
        weights |= INPUTS.tensors(system.b / gain.unsqueeze(-1))
        maps = (
            ScaledInputs(INPUTS, reduction.embed, gain_of(sampled_of(layer, rule)), gain, system.b, dim=2).pullback(),
            output_pullback(OUTPUTS, reduction.restrict, dim=2),
            Reset(tuple(tensors)),
        )
        return LayerUpdate(system.order, {**tensors, **weights}, self.prepare(layer, system.order), maps)


@register_signature({**SHAPES, **TIED})
class S4TiedAdapter(KernelAdapter):
    """`SSMKernelDiag` with `n_ssm` below H: channels share continuous poles and B, though each has its step and C.

    No channel can have poles of its own. So all channels keep one choice of their states; C is fitted anew.
    `n_ssm=None` when the layer is built gives each channel its own, for balancing.
    """

    form = Form.SELECTION

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        if "P" in layer.get_submodule("kernel")._parameters:
            name = type(layer).__name__
            raise AdapterError(
                f"{name} has a low-rank part and shares its state matrices among channels (n_ssm below d_model): "
                f"neither a choice of its states nor one change of them for all channels can be stored. Build it with "
                f"n_ssm=None or mode='diag', or leave it alone with adapters={{{name}: None}}."
            )
        return read_diagonal(layer, rule_of(layer))

    def selection(self, layer: nn.Module) -> SelectionRules:
        """One keep-set for all channels."""
        return SelectionRules(shared=True, refit_outputs=True)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the kept states."""
        if reduction.keep is None or reduction.keep.ndim != 1:
            raise AdapterError("S4D with n_ssm below d_model stores a choice of its states, the same in all channels.")
        update = select_kernel(layer, reduction.keep, self.prepare(layer, reduction.order))
        if not reduction.refitted:
            return update
        return replace(update, tensors={**update.tensors, **OUTPUTS.tensors(reduction.system.c / 2)})


def rule_of(layer: nn.Module) -> Sampling:
    """How a diagonal kernel samples; AdapterError for an option that makes it no system that this adapter knows."""
    options, name = options_of(layer), type(layer).__name__
    if (rule := options.get("disc", "zoh")) not in ("zoh", "bilinear"):
        raise AdapterError(
            f"{name} has disc={rule!r}, known are 'zoh' and 'bilinear' ('dss' scales the kernel by its length, so that "
            f"it is not one system). Leave it alone with adapters={{{name}: None}}."
        )
    return Sampling(rule)


def options_of(layer: nn.Module) -> Mapping[str, object]:
    """The attributes of the kernel; AdapterError for options with which it cannot be cut."""
    name, options = type(layer).__name__, vars(layer.get_submodule("kernel"))
    for option, plain, reason in (
        ("bandlimit", None, "it masks states by their frequency, also those that a cut would make"),
        ("imag_transform", "none", "a real pole has no place under it"),
        ("is_real", False, "it stores real poles only"),
        ("force_real", False, "it uses the real part of its poles only"),
    ):
        if options.get(option, plain) != plain:
            raise AdapterError(
                f"{name} with {option}={options[option]!r} cannot be cut: {reason}. Build it with {option}={plain!r}, "
                f"or leave it alone with adapters={{{name}: None}}."
            )
    return options


def read_diagonal(layer: nn.Module, rule: Sampling) -> StateSpace:
    """The bank of a kernel without low-rank part."""
    sampled, h = sampled_of(layer, rule), held(layer, STEP).shape[0]
    log_pole, weights = torch.complex(-sampled.nu, sampled.theta), INPUTS.read(layer)
    b = gain_of(sampled).unsqueeze(-1) * weights.repeat(h // weights.shape[0], 1, 1)
    return StateSpace(torch.exp(log_pole), b, 2 * OUTPUTS.read(layer), feedthrough(layer), log_a=log_pole)


def feedthrough(layer: nn.Module) -> Tensor:
    """D as (H, p, 1); with `bidirectional` of the outputs that run forwards."""
    d = double(layer, "D").mT.unsqueeze(-1)
    return torch.cat([d, torch.zeros_like(d)], 1) if is_bidirectional(layer) else d


def is_bidirectional(layer: nn.Module) -> bool:
    """Whether half of the kernel's outputs run backwards."""
    return bool(vars(layer).get("bidirectional", False))


@contextmanager
def _half(layer: nn.Module, half: int) -> Iterator[None]:
    """With one half of the kernel's outputs alone, and D only with the first; as it was afterwards."""
    kernel = layer.get_submodule("kernel")
    table: dict[str, Tensor | None] = kernel._parameters if "C" in kernel._parameters else kernel._buffers  # pyright: ignore[reportAssignmentType]
    own: dict[str, Tensor | None] = layer._parameters  # pyright: ignore[reportAssignmentType]
    c, d = table["C"], own["D"]
    if c is None or d is None:
        raise AdapterError(f"{type(layer).__name__} has lost kernel.C or D.")
    keep = torch.arange(len(c), device=c.device) // (len(c) // 2) == half
    table["C"], own["D"] = c * keep[:, None, None, None], d * (1 - half)
    try:
        yield
    finally:
        table["C"], own["D"] = c, d


def continuous_of(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Decay rates and frequencies (H, n), and steps (H, 1) or (H, n), of each channel."""
    options, name = options_of(layer), type(layer).__name__
    real = Transform.named(options.get("real_transform", "exp"), "real_transform", name)
    decay, frequency, step = real.apply(double(layer, DECAY)), -double(layer, FREQUENCY), double(layer, STEP)
    if step.shape[1] not in (1, decay.shape[1]):
        raise AdapterError(f"{name}: kernel.inv_dt is {tuple(step.shape)}; wanted one or {decay.shape[1]} columns.")
    copies = step.shape[0] // decay.shape[0]
    step = torch.sinh(step) if options.get("dt_fast", False) else step
    times = Transform.named(options.get("dt_transform", "exp"), "dt_transform", name)
    return decay.repeat(copies, 1), frequency.repeat(copies, 1), times.apply(step)


def sampled_of(layer: nn.Module, rule: Sampling) -> Sampled:
    """Discrete poles and input gains (H, n) of the diagonal part."""
    decay, frequency, step = continuous_of(layer)
    return sample(decay, frequency, step, rule)


def gain_of(sampled: Sampled) -> Tensor:
    """The complex input gains."""
    return torch.complex(sampled.gain_re, sampled.gain_im)


def write_poles(layer: nn.Module, system: StateSpace, rule: Sampling) -> tuple[Sampled, dict[str, Tensor]]:
    """The poles of a reduced bank as the kernel samples them, and the tensors that store them."""
    name = type(layer).__name__
    _, _, step = continuous_of(layer)
    tensors: dict[str, Tensor] = {}
    if step.shape[1] > 1:
        old = sampled_of(layer, rule)
        origin = nearest_poles(log_poles(system, name), torch.complex(-old.nu, old.theta))
        tensors[STEP], step = double(layer, STEP).gather(1, origin), step.gather(1, origin)
    decay, frequency = continuous_poles(system, step, rule, name)
    real = Transform.named(options_of(layer).get("real_transform", "exp"), "real_transform", name)
    tensors |= {DECAY: real.invert(decay, "real_transform", name), FREQUENCY: -frequency}
    return sample(decay, frequency, step, rule), tensors


def select_kernel(layer: nn.Module, keep: Tensor, attributes: Mapping[str, object], *more: str) -> LayerUpdate:
    """Keep some states of a diagonal kernel; `more` names tensors that carry them in dimension 2."""
    steps = (STEP,) if held(layer, STEP).shape[1] > 1 else ()
    return select_update(
        layer, keep, ((), (DECAY, FREQUENCY, *steps), (*INPUTS.names, *OUTPUTS.names, *more)), attributes
    )
