"""Complex weights in the forms in which layers store them, and how their gradients follow a change of the states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressm.adapters.holding import double
from compressm.adapters.pullbacks import typical
from compressm.adapters.update import Pullback
from compressm.reduction.result import ConjugateLinear


class ComplexWeights(ABC):
    """A complex matrix that a layer stores in real or complex tensors."""

    names: tuple[str, ...]

    @abstractmethod
    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The complex matrix (or its gradient) in double precision, from the stored tensors (or theirs)."""

    @abstractmethod
    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """The stored tensors (or their gradients) for a complex matrix (or its gradient)."""

    def read(self, layer: nn.Module) -> Tensor:
        """The matrix that the layer holds, on the CPU."""
        return self.value({name: double(layer, name) for name in self.names})


@dataclass(frozen=True)
class SplitWeights(ComplexWeights):
    """Two real tensors, the real part and the imaginary part (or, with `sign` -1, its negative)."""

    re: str
    im: str
    sign: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Both tensors."""
        return self.re, self.im

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """re + i sign im."""
        return torch.complex(tensors[self.re].double(), self.sign * tensors[self.im].double())

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """Real and imaginary part."""
        return {self.re: value.real.clone(), self.im: self.sign * value.imag}


@dataclass(frozen=True)
class ViewedWeights(ComplexWeights):
    """One real tensor `(*, 2)`, the real view."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tensor."""
        return (self.name,)

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The complex view."""
        return torch.view_as_complex(tensors[self.name].double().contiguous())

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """The real view."""
        return {self.name: torch.view_as_real(value.resolve_conj()).clone()}


@dataclass(frozen=True)
class OneTensor(ComplexWeights, ABC):
    """Weights that are one tensor, real or complex."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tensor."""
        return (self.name,)

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, as complex numbers."""
        return tensors[self.name].to(torch.complex128)


@dataclass(frozen=True)
class PlainWeights(OneTensor):
    """One complex tensor."""

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """The tensor."""
        return {self.name: value.resolve_conj().clone()}


@dataclass(frozen=True)
class RealWeights(OneTensor):
    """One real tensor, for weights without an imaginary part."""

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """The real part."""
        return {self.name: value.real.clone()}


@dataclass(frozen=True)
class ExpandedWeights(ComplexWeights):
    """Weights with one more dimension of size 1 at `dim` than the stored tensors have."""

    stored: ComplexWeights
    dim: int

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the stored tensors."""
        return self.stored.names

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The stored value with the further dimension."""
        return self.stored.value(tensors).unsqueeze(self.dim)

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """Those of the value without the further dimension."""
        return self.stored.tensors(value.squeeze(self.dim))


@dataclass(frozen=True)
class PermutedWeights(ComplexWeights):
    """Weights whose dimensions are those of the stored tensors in another order, as `Tensor.permute` takes it."""

    stored: ComplexWeights
    order: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the stored tensors."""
        return self.stored.names

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The stored value in this order."""
        return self.stored.value(tensors).permute(self.order)

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """Those of the value in the stored order."""
        return self.stored.tensors(value.permute([self.order.index(k) for k in range(len(self.order))]))


@dataclass(frozen=True)
class StackedWeights(ComplexWeights):
    """Output weights (p, n) of k systems with the same states, stored side by side as (p, k n), read as (k p, n)."""

    stored: ComplexWeights
    systems: int

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the stored tensors."""
        return self.stored.names

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One system's outputs below those of the one before it."""
        return torch.cat(self.stored.value(tensors).chunk(self.systems, -1), -2)

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """Those of the value side by side."""
        return self.stored.tensors(torch.cat(value.chunk(self.systems, -2), -1))


@dataclass(frozen=True, eq=False)
class ScaledInputs:
    """How B = gain * weights follows: `gain` `(*h, n)` before and after, real or complex; `embed` has B ~ embed(B').

    Where the gain is exp of a parameter `log_gain` `(n,)`, its gradient follows from that of B as well: the sum over
    inputs of Re(conj(B') G'), with `new_b` the new B.
    """

    weights: ComplexWeights
    embed: ConjugateLinear
    old_gain: Tensor
    new_gain: Tensor
    new_b: Tensor
    log_gain: str | None = None
    dim: int = 0  # of the states in the stored tensors

    def pullback(self) -> Pullback:
        """Gradients: G of B is g / conj(gain), G' = embed.adjoint(G), g' = conj(gain') G'."""
        names = (*self.weights.names, *(() if self.log_gain is None else (self.log_gain,)))
        n = self.new_gain.shape[-1]

        def variances(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: typical(old[name], self.dim, n) for name in names}

        return Pullback(names, self._covectors, variances)

    def _covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = self.embed.adjoint(self.weights.value(old) / self.old_gain.conj().unsqueeze(-1))
        found = self.weights.tensors(new * self.new_gain.conj().unsqueeze(-1))
        if self.log_gain is not None:
            found[self.log_gain] = (self.new_b.conj() * new).real.sum(-1)
        return found


def output_pullback(
    weights: ComplexWeights,
    restrict: ConjugateLinear,
    old_gain: Tensor | None = None,
    new_gain: Tensor | None = None,
    dim: int = 1,
) -> Pullback:
    """For C = gain * weights with C ~ restrict.right(C'): gradients follow as G' = restrict.right_adjoint(G).

    The gains `(*h, 1, n)` before and after, real or complex, are those of fixed input weights; None stands for 1. The
    states are the dimension `dim` of the stored tensors.
    """
    n = restrict.linear.shape[-2] * (weights.systems if isinstance(weights, StackedWeights) else 1)

    def covectors(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = weights.value(old)
        new = restrict.right_adjoint(g if old_gain is None else g / old_gain.conj())
        return weights.tensors(new if new_gain is None else new * new_gain.conj())

    def variances(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: typical(old[name], dim, n) for name in weights.names}

    return Pullback(weights.names, covectors, variances)
