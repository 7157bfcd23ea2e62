"""S5 of the package s5-pytorch: diagonal, continuous, several inputs and outputs, a step size for each state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import double, held
from compressm.adapters.poles import continuous_poles, log_poles, nearest_poles
from compressm.adapters.registry import register_adapter, register_signature
from compressm.adapters.selecting import select_update
from compressm.adapters.update import LayerUpdate, Reset, Select, kept_entries
from compressm.adapters.weights import (
    ComplexWeights,
    PlainWeights,
    ScaledInputs,
    StackedWeights,
    ViewedWeights,
    output_pullback,
)
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampled, Sampling, sample
from compressm.reduction.result import Reduction

_RULES = {"discretize_zoh": Sampling.ZOH, "discretize_bilinear": Sampling.BILINEAR}
_SHAPES = {"Lambda": "n complex", "B": "n m 2", "C": "m k complex", "D": "m", "log_step": "n"}  # k is n or 2 n


class S5FormAdapter(StateSpaceAdapter):
    """lambda continuous, step = exp(log_step) of each state, y = Re(C x) + D * u: no factor 2, nothing halved.

    Zero-order hold: pole = e^{lambda step}, B = (pole - 1) / lambda * weights; bilinear: pole = (1 + lambda step / 2)
    / (1 - lambda step / 2), B = step / (1 - lambda step / 2) * weights (Smith et al. 2023, arXiv 2208.04933, eq. 6).

    A reduction is of the discrete system. Each new state takes over the step of the present state whose pole is
    nearest, so that steps stay among those that were learned; lambda and the weights follow from it. With zero-order
    hold a pole nearer to 0 than 1e-6 is moved out to it.

    With `bidir` the layer has two systems with A and B in common: one runs forwards, the other backwards in time, and
    their outputs are added. They are read as one system with twice the outputs, D among the first half, which is what
    is balanced and reported on; the layer's own H-infinity error is at most twice the reported one. Each captured
    sequence counts twice, as it is and reversed.
    """

    form = Form.DIAGONAL
    prefix = ""  # where the parameters are, with its dot

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete system for a step scale of 1; AdapterError for options that are not linear and causal."""
        sampled = self._sampled(layer)
        log_pole = torch.complex(-sampled.nu, sampled.theta)
        b, c = _gain(sampled).unsqueeze(-1) * self._inputs.read(layer), self._outputs(layer).read(layer)
        d = torch.diag_embed(self._double(layer, "D"))
        d = torch.cat([d, torch.zeros_like(d)]) if self._is_bidirectional(layer) else d
        return StateSpace(torch.exp(log_pole), b, c, d, log_a=log_pole)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced system."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S5: a reduction without maps between old and new states cannot be written.")
        rates, steps, weights = f"{self.prefix}Lambda", f"{self.prefix}log_step", self._outputs(layer)
        if reduction.keep is not None:
            return self._select(layer, reduction.keep, (rates, steps, *self._inputs.names))
        system, rule, before = reduction.system, self._rule(layer), self._sampled(layer)
        origin = nearest_poles(log_poles(system, "S5"), torch.complex(-before.nu, before.theta))
        log_step = self._double(layer, "log_step")[origin]
        decay, frequency = continuous_poles(system, torch.exp(log_step), rule, "S5")
        gain = _gain(sample(decay, frequency, torch.exp(log_step), rule))
        tensors = {
            rates: torch.complex(-decay, frequency),
            steps: log_step,
            **self._inputs.tensors(system.b / gain.unsqueeze(-1)),
            **weights.tensors(system.c),
        }
        inputs = ScaledInputs(self._inputs, reduction.embed, _gain(before), gain, system.b)
        outputs = output_pullback(weights, reduction.restrict)
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
        u = u.unsqueeze(0) if u.ndim == 2 else u
        return (torch.cat([u, u.flip(1)]) if self._is_bidirectional(layer) and u.ndim == 3 else u), None

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """`(batch, L, m)`; with `bidir` `(2 batch, L, 2 m)`, first for what runs forwards, then for the other."""
        value = value.unsqueeze(0) if value.ndim == 2 else value
        if not self._is_bidirectional(layer):
            return value
        nothing = torch.zeros_like(value)
        return torch.cat([torch.cat([value, nothing], -1), torch.cat([nothing, value.flip(1)], -1)])

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The layer's own output; with `bidir` that with the other half of C at 0, and the second one reversed."""
        if not self._is_bidirectional(layer):
            return self._run(layer, u)
        inner = self._inner(layer)
        with _half(inner, 0):
            forwards = self._run(layer, u)
        with _half(inner, 1):
            backwards = self._run(layer, u.flip(1)).flip(1)
        return torch.cat([forwards, backwards], -1)

    def _run(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The layer's own output for a batch."""
        return self.output(layer, type(layer).forward(layer, u))

    def _select(self, layer: nn.Module, keep: Tensor, rows: tuple[str, ...]) -> LayerUpdate:
        """Some of the present states."""
        update, name, n = select_update(layer, keep, (rows,)), f"{self.prefix}C", len(self._double(layer, "Lambda"))
        outputs = Select((name,), torch.cat([keep, keep + n]) if self._is_bidirectional(layer) else keep, 1)
        tensors = {**update.tensors, name: kept_entries(held(layer, name), outputs.indices, 1)}
        return replace(update, tensors=tensors, maps=(*update.maps, outputs))

    def _inner(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule(self.prefix.rstrip("."))

    def _is_bidirectional(self, layer: nn.Module) -> bool:
        return bool(vars(self._inner(layer)).get("bidir", False))

    @property
    def _inputs(self) -> ViewedWeights:
        return ViewedWeights(f"{self.prefix}B")

    def _outputs(self, layer: nn.Module) -> ComplexWeights:
        weights = PlainWeights(f"{self.prefix}C")
        return StackedWeights(weights, 2) if self._is_bidirectional(layer) else weights

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
        options, name = vars(self._inner(layer)), type(layer).__name__
        for option, plain, remedy in (
            ("liquid", False, "its transition depends on the input, so it is no linear time-invariant system"),
            ("degree", 1, "its input weights are raised to a power"),
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

    def _run(self, layer: nn.Module, u: Tensor) -> Tensor:
        """Sequence by sequence."""
        return torch.stack([self.output(layer, type(layer).forward(layer, sequence)) for sequence in u])


@contextmanager
def _half(inner: nn.Module, half: int) -> Iterator[None]:
    """With one half of C alone, and D only with the first; as it was afterwards."""
    held_before = dict(inner._parameters)
    c, d = inner.get_parameter("C"), inner.get_parameter("D")
    keep = torch.arange(c.shape[1], device=c.device) // (c.shape[1] // 2) == half
    inner._parameters.update({"C": c * keep, "D": d * (1 - half)})  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        yield
    finally:
        inner._parameters.update(held_before)


def _gain(sampled: Sampled) -> Tensor:
    return torch.complex(sampled.gain_re, sampled.gain_im)
