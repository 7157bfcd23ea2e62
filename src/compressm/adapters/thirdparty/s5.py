"""S5 of the package s5-pytorch: diagonal, continuous, several inputs and outputs, a step size for each state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double
from compressm.adapters.poles import continuous_poles, log_poles, nearest_poles
from compressm.adapters.registry import register_adapter, register_signature
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset
from compressm.adapters.weights import PlainWeights, ScaledInputs, ViewedWeights, output_pullback
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampled, Sampling, sample
from compressm.reduction.result import Reduction

_RULES = {"discretize_zoh": Sampling.ZOH, "discretize_bilinear": Sampling.BILINEAR}
_SHAPES = {"Lambda": "n complex", "B": "n m 2", "C": "m n complex", "D": "m", "log_step": "n"}


class S5FormAdapter(StateSpaceAdapter):
    """lambda continuous, step = exp(log_step) of each state, y = Re(C x) + D * u: no factor 2, nothing halved.

    Zero-order hold: pole = e^{lambda step}, B = (pole - 1) / lambda * weights; bilinear: pole = (1 + lambda step / 2)
    / (1 - lambda step / 2), B = step / (1 - lambda step / 2) * weights (Smith et al. 2023, arXiv 2208.04933, eq. 6).

    A reduction is of the discrete system. Each new state takes over the step of the present state whose pole is
    nearest, so that steps stay among those that were learned; lambda and the weights follow from it. With zero-order
    hold a pole nearer to 0 than 1e-6 is moved out to it.
    """

    form = Form.DIAGONAL
    prefix = ""  # where the parameters are, with its dot

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete system for a step scale of 1; AdapterError for options that are not linear and causal."""
        sampled = self._sampled(layer)
        log_pole = torch.complex(-sampled.nu, sampled.theta)
        b, c = _gain(sampled).unsqueeze(-1) * self._inputs.read(layer), self._outputs.read(layer)
        return StateSpace(torch.exp(log_pole), b, c, torch.diag_embed(self._double(layer, "D")), log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S5: a reduction without maps between old and new states cannot be written.")
        rates, steps = f"{self.prefix}Lambda", f"{self.prefix}log_step"
        if reduction.keep is not None:
            return select_update(layer, reduction.keep, ((rates, steps, *self._inputs.names), self._outputs.names))
        system, rule, before = reduction.system, self._rule(layer), self._sampled(layer)
        origin = nearest_poles(log_poles(system, "S5"), torch.complex(-before.nu, before.theta))
        log_step = self._double(layer, "log_step")[origin]
        decay, frequency = continuous_poles(system, torch.exp(log_step), rule, "S5")
        gain = _gain(sample(decay, frequency, torch.exp(log_step), rule))
        tensors = {
            rates: torch.complex(-decay, frequency),
            steps: log_step,
            **self._inputs.tensors(system.b / gain.unsqueeze(-1)),
            **self._outputs.tensors(system.c),
        }
        inputs = ScaledInputs(self._inputs, reduction.embed, _gain(before), gain, system.b)
        outputs = output_pullback(self._outputs, reduction.restrict)
        return LayerUpdate(system.order, tensors, maps=(inputs.pullback(), outputs, Reset((rates, steps))))

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; the others are a step scale, which must be 1, and a state, which must be absent."""
        u, _ = super().inputs(layer, args[:1], kwargs)
        scale = kwargs.get("step_scale", args[1] if len(args) > 1 else 1.0)
        state = kwargs.get("state", args[2] if len(args) > 2 else None)
        if state is not None or not bool((torch.as_tensor(scale) == 1).all()):
            raise AdapterError(
                f"{type(layer).__name__} was called with {'a state' if state is not None else 'a step_scale'}; the "
                f"system that is cut is the one from a zero state with step_scale=1. Capture such passes."
            )
        return u, None

    @property
    def _inputs(self) -> ViewedWeights:
        return ViewedWeights(f"{self.prefix}B")

    @property
    def _outputs(self) -> PlainWeights:
        return PlainWeights(f"{self.prefix}C")

    def _double(self, layer: nn.Module, name: str) -> Tensor:
        return double(layer, self.prefix + name)

    def _sampled(self, layer: nn.Module) -> Sampled:
        rate, step = self._double(layer, "Lambda"), self._double(layer, "log_step").exp()
        if not rate.is_complex():
            raise AdapterError(
                f"{type(layer).__name__}: Lambda is real ({rate.dtype}), wanted complex. Module.to(dtype) drops "
                f"imaginary parts; build the layer anew and leave its dtype, or use .double()."
            )
        return sample(-rate.real, rate.imag, step, self._rule(layer))

    def _rule(self, layer: nn.Module) -> Sampling:
        """The discretisation; AdapterError for options that this adapter does not know."""
        inner = layer.get_submodule(self.prefix.rstrip("."))
        options, name = vars(inner), type(layer).__name__
        for option, plain, remedy in (
            ("liquid", False, "its transition depends on the input, so it is no linear time-invariant system"),
            ("degree", 1, "its input weights are raised to a power"),
            ("bidir", False, "it also runs backwards in time; use two layers, one on the reversed sequence"),
        ):
            if options.get(option, plain) != plain:
                raise AdapterError(
                    f"{name} with {option}={options[option]!r} cannot be cut: {remedy}. Leave it alone with "
                    f"adapters={{{name}: None}}, or set {option}={plain!r}."
                )
        if options.get("bcInit") == "factorized":
            raise AdapterError(f"{name} with bcInit='factorized' cannot be cut: B and C are products. Use 'dense'.")
        method = getattr(options.get("discretize"), "__name__", None)
        if method not in _RULES:
            raise AdapterError(f"{name} discretizes by {method!r}; known are {', '.join(_RULES)}.")
        return _RULES[method]


@register_adapter("s5.s5_model.S5")
@register_signature({f"seq.{name}": shape for name, shape in _SHAPES.items()})
class S5Adapter(S5FormAdapter):
    """`s5.S5`, on batches `(batch, L, width)`."""

    prefix = "seq."


@register_adapter("s5.s5_model.S5SSM")
@register_signature(_SHAPES)
class S5SSMAdapter(S5FormAdapter):
    """`s5.s5_model.S5SSM` where it stands alone; its forward pass takes one sequence `(L, width)`."""

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """As for a batch of one sequence."""
        u, mask = super().inputs(layer, args, kwargs)
        return u.unsqueeze(0) if u.ndim == 2 else u, mask

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """A batch of one sequence."""
        return value.unsqueeze(0) if value.ndim == 2 else value

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """Sequence by sequence."""
        return torch.stack([self.output(layer, type(layer).forward(layer, sequence)) for sequence in u])


def _gain(sampled: Sampled) -> Tensor:
    return torch.complex(sampled.gain_re, sampled.gain_im)
