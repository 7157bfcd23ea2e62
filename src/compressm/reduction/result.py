"""What a reduction returns: the small system and the maps between old and new states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from compressm.linalg.statespace import StateSpace


class GramianSource(Enum):
    """Where a Gramian comes from."""

    WHITE = "white"  # the classical Gramian: white input, all outputs alike
    DATA = "data"  # controllability from the layer's own inputs
    LOSS = "loss"  # observability from the loss's gradients at the layer's output


@dataclass(frozen=True)
class ConjugateLinear:
    """The real-linear map x -> M x + N conj(x) between complex (or real) vectors; N is None where it is zero.

    For a bank M and N have its batch dimensions, `(*h, k, n)`, and so has what they are applied to.
    """

    linear: Tensor
    conjugate: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map to the columns of `x` `(*h, n, m)`."""
        y = self.linear @ x
        return y if self.conjugate is None else y + self.conjugate @ x.conj()

    def right(self, c: Tensor) -> Tensor:
        """The row c' with Re(c (M x + N conj(x))) = Re(c' x): c M + conj(c N); plain c M where N is None."""
        y = c @ self.linear
        return y if self.conjugate is None else y + (c @ self.conjugate).conj()

    def adjoint(self, g: Tensor) -> Tensor:
        """Pull a gradient back through `__call__`: M* g + N^T conj(g), in PyTorch's convention of gradients."""
        y = self.linear.mH @ g
        return y if self.conjugate is None else y + self.conjugate.mT @ g.conj()

    def right_adjoint(self, g: Tensor) -> Tensor:
        """Pull a gradient back through `right`: g M* + conj(g) N*."""
        y = g @ self.linear.mH
        return y if self.conjugate is None else y + g.conj() @ self.conjugate.mH


@dataclass(frozen=True)
class Reduction:
    """A reduced system in the layer's own form, with the maps between old and new stored states.

    `restrict` gives new states from old ones, x' = restrict(x), and `embed` approximates old states from new ones,
    x ~ embed(x'); both contain re-diagonalisation and scaling. The weights follow as B' = restrict(B) and
    C' = embed.right(C); gradients as grad B' = embed.adjoint(grad B) and grad C' = restrict.right_adjoint(grad C).
    `keep` holds the indices (increasing) of the states that a choice among the present ones keeps: `(r,)`, or `(*h, r)`
    where each system of a bank keeps its own; with `refitted`, the weights in `system` are not those the states had.
    For a bank everything has its batch dimensions. `real_order` is the largest number of real states of any of its
    systems and `states` `(*h,)` how many balanced states each system keeps (None: `real_order`); all have the same
    number of stored states. `change` `(*h, p, r)` is what a fit added to C', which is then embed.right(C) + change.
    """

    system: StateSpace
    real_order: int
    restrict: ConjugateLinear | None
    embed: ConjugateLinear | None
    keep: Tensor | None
    conditioning: float
    controllability: GramianSource
    observability: GramianSource
    fallbacks: tuple[str, ...] = ()
    states: Tensor | None = None
    refitted: bool = False
    change: Tensor | None = None

    @property
    def order(self) -> int:
        """The number of stored states after the reduction."""
        return self.system.order
