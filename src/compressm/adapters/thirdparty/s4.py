"""S4 and S4D in the full form of the S4 repository: a kernel module, alone or inside a layer that convolves with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double, held
from compressm.adapters.poles import continuous_poles, log_poles, nearest_poles
from compressm.adapters.registry import register_signature
from compressm.adapters.selecting import select_update
from compressm.adapters.thirdparty.releases import (
    V2,
    V2_HURWITZ,
    V3,
    V3_ALONE,
    V3_LOW_RANK,
    V4,
    V4_ALONE,
    V4_LOW_RANK,
    V4_REAL,
    Release,
    release_of,
)
from compressm.adapters.thirdparty.transforms import Transform
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import ScaledInputs, output_pullback
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampled, Sampling, sample
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules


class KernelAdapter(StateSpaceAdapter):
    """A kernel with continuous poles s, a step for each channel or each state, and y = 2 Re(C x) + D u.

    Names and what is around the kernel are those of its release (`compressm.adapters.thirdparty.releases`); decay
    rates, and in the newest one steps, are stored under a function that an option names. A kernel with p outputs gives
    each channel p outputs. What stepping has prepared (`setup_step`) is not changed: call it again after a cut, as
    after any change of weights.
    """

    def tap(self, layer: nn.Module) -> nn.Module | None:
        """The submodule that is called with the output, if any."""
        return release_of(layer).around.tap(layer)

    def takes_input(self, layer: nn.Module) -> bool:
        """Not where the layer is the kernel alone."""
        return release_of(layer).around.takes_input

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; AdapterError for a call with a state or a rate other than 1."""
        return release_of(layer).around.inputs(layer, args, kwargs)

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """`(batch, L, H p)`, for a bidirectional layer `(2 batch, L, H 2 p)`."""
        return release_of(layer).around.arranged(layer, value)

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The systems' output, without dropout."""
        return release_of(layer).around.response(layer, u)

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The numbers of states, where the layer and its kernel keep them."""
        return release_of(layer).prepared(layer, order)


@register_signature(V4.shapes("h"))
@register_signature(V3.shapes("h"))
@register_signature(V4_ALONE.shapes("h"))
@register_signature(V3_ALONE.shapes("h"))
class S4KernelAdapter(KernelAdapter):
    """`SSMKernelDiag` or `SSKernelDiag` with a state matrix for each channel: diagonal systems, each cut for itself.

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
        release, system, rule = release_of(layer), reduction.system, rule_of(layer)
        sampled, tensors = write_poles(layer, system, rule)
        old, gain = gain_of(sampled_of(layer, rule)), gain_of(sampled)
        weights = {**release.outputs.tensors(system.c / 2), **release.inputs.tensors(system.b / gain.unsqueeze(-1))}
        maps = (
            ScaledInputs(release.inputs, reduction.embed, old, gain, system.b, dim=release.input_dim).pullback(),
            output_pullback(release.outputs, reduction.restrict, dim=2),
            Reset(tuple(tensors)),
        )
        return LayerUpdate(system.order, {**tensors, **weights}, self.prepare(layer, system.order), maps)


class ChosenKernelAdapter(KernelAdapter):
    """A kernel that keeps a choice of its states; C is fitted anew."""

    form = Form.SELECTION

    def selection(self, layer: nn.Module) -> SelectionRules:
        """One keep-set for all channels where they share their poles, else one for each."""
        release = release_of(layer)
        channels, rows = release.outputs.read(layer).shape[0], release.inputs.read(layer).shape[0]
        return SelectionRules(shared=rows < channels, refit_outputs=True)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the kept states."""
        if reduction.keep is None:
            raise AdapterError(f"{type(layer).__name__} stores a choice of its present states and nothing else.")
        update = select_kernel(layer, reduction.keep, self.prepare(layer, reduction.order))
        if not reduction.refitted:
            return update
        weights = release_of(layer).outputs.tensors(reduction.system.c / 2)
        return replace(update, tensors={**update.tensors, **weights})


@register_signature(V4.shapes("s"))
@register_signature(V3.shapes("s"))
@register_signature(V4_ALONE.shapes("s"))
@register_signature(V3_ALONE.shapes("s"))
@register_signature(V4_LOW_RANK.shapes("s"))
@register_signature(V3_LOW_RANK.shapes("s"))
@register_signature(V2_HURWITZ.shapes("s"))
@register_signature(V2.shapes("s"))
class S4TiedAdapter(ChosenKernelAdapter):
    """A kernel with `n_ssm` below H: channels share continuous poles and B, though each has its step and C.

    No channel can have poles of its own. So all channels keep one choice of their states. `n_ssm=None` when the layer
    is built gives each channel its own, for balancing.
    """

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, with log(pole) exact from the parameters."""
        if release_of(layer).low_rank is not None:
            name = type(layer).__name__
            raise AdapterError(
                f"{name} has a low-rank part and shares its state matrices among channels (n_ssm below d_model): "
                f"neither a choice of its states nor one change of them for all channels can be stored. Build it with "
                f"n_ssm=None or mode='diag', or leave it alone with adapters={{{name}: None}}."
            )
        return read_diagonal(layer, rule_of(layer))


@register_signature(V4_REAL.shapes("s"))
class S4RealAdapter(ChosenKernelAdapter):
    """`SSMKernelDiag(is_real=True)`: real poles and real weights, so that y = 2 C x + D u.

    A balanced system has pairs of complex poles as a rule, which the layer cannot store. So each channel keeps a choice
    of its states, all channels the same one where they share poles.
    """

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems, real."""
        system = read_diagonal(layer, rule_of(layer))
        return replace(system, a=system.a.real, b=system.b.real, c=system.c.real)


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
    name, options = type(layer).__name__, vars(release_of(layer).kernel(layer))
    for option, plain, reason in (
        ("bandlimit", None, "it masks states by their frequency, also those that a cut would make"),
        ("imag_transform", "none", "a real pole has no place under it"),
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
    release, sampled = release_of(layer), sampled_of(layer, rule)
    log_pole, weights = torch.complex(-sampled.nu, sampled.theta), release.inputs.read(layer)
    b = gain_of(sampled).unsqueeze(-1) * weights.repeat(log_pole.shape[0] // weights.shape[0], 1, 1)
    c, d = 2 * release.outputs.read(layer), release.around.feedthrough(layer)
    return StateSpace(torch.exp(log_pole), b, c, d, log_a=log_pole)


def steps_of(layer: nn.Module, release: Release) -> Tensor:
    """Steps (H, 1) or (H, n)."""
    options, name = options_of(layer), type(layer).__name__
    step = double(release.kernel(layer), release.step)
    step = torch.sinh(step) if options.get("dt_fast", False) else step
    times = Transform.named(options.get("dt_transform", "exp"), "dt_transform", name).apply(step)
    return times if release.wide_steps else times.unsqueeze(1)


def continuous_of(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Decay rates and frequencies (H, n), and steps (H, 1) or (H, n), of each channel."""
    release, name = release_of(layer), type(layer).__name__
    step = steps_of(layer, release)
    decay, frequency = release.poles.read(release.kernel(layer), name)
    if step.shape[1] not in (1, decay.shape[1]):
        raise AdapterError(
            f"{name}: {release.path}{release.step} is {tuple(step.shape)}; wanted one or {decay.shape[1]} columns."
        )
    copies = step.shape[0] // decay.shape[0]
    return decay.repeat(copies, 1), frequency.repeat(copies, 1), step


def sampled_of(layer: nn.Module, rule: Sampling) -> Sampled:
    """Discrete poles and input gains (H, n) of the diagonal part."""
    decay, frequency, step = continuous_of(layer)
    return sample(decay, frequency, step, rule)


def gain_of(sampled: Sampled) -> Tensor:
    """The complex input gains."""
    return torch.complex(sampled.gain_re, sampled.gain_im)


def write_poles(layer: nn.Module, system: StateSpace, rule: Sampling) -> tuple[Sampled, dict[str, Tensor]]:
    """The poles of a reduced bank as the kernel samples them, and the tensors that store them."""
    release, name = release_of(layer), type(layer).__name__
    step, stored = steps_of(layer, release), f"{release.path}{release.step}"
    tensors: dict[str, Tensor] = {}
    if step.shape[1] > 1:
        old = sampled_of(layer, rule)
        origin = nearest_poles(log_poles(system, name), torch.complex(-old.nu, old.theta))
        tensors[stored], step = double(layer, stored).gather(1, origin), step.gather(1, origin)
    decay, frequency = continuous_poles(system, step, rule, name)
    poles = release.poles.tensors(release.kernel(layer), name, decay, frequency)
    tensors |= {release.path + key: value for key, value in poles.items()}
    return sample(decay, frequency, step, rule), tensors


def select_kernel(layer: nn.Module, keep: Tensor, attributes: Mapping[str, object]) -> LayerUpdate:
    """Keep some states of a diagonal kernel."""
    release = release_of(layer)
    step = f"{release.path}{release.step}"
    steps = (step,) if release.wide_steps and held(layer, step).shape[1] > 1 else ()
    poles = (release.path + name for name in release.poles.names)
    low_rank = (release.path + name for name in (release.low_rank.names if release.low_rank else ()))
    by_dimension = [[], [*poles, *steps], [*release.outputs.names, *low_rank]]
    by_dimension[release.input_dim] += release.inputs.names
    return select_update(layer, keep, by_dimension, attributes)
