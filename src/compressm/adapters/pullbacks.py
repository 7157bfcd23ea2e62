"""How gradients and moments of input and output weights follow a change of the states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressm.adapters.update import Pullback
from compressm.reduction.result import ConjugateLinear


@dataclass(frozen=True, eq=False)
class InputWeights:
    """Real parameters `re`, `im` `(n, m)` of B, and the log-gain `log_gain` `(n,)`: B = exp(log_gain) (re + i im).

    `old_gain` and `new_gain` are exp(log_gain) before and after, `new_b` the new B; `embed` has B ~ embed(B').
    """

    re: str
    im: str
    log_gain: str
    embed: ConjugateLinear
    old_gain: Tensor
    new_gain: Tensor
    new_b: Tensor

    def pullback(self) -> Pullback:
        """Gradients: G of B is (g_re + i g_im) / gain; G' = embed.adjoint(G); times the new gain. The log-gain's
        gradient is the sum over inputs of Re(conj(B') G').
        """
        return Pullback((self.re, self.im, self.log_gain), self._covectors, self._variances)

    def _covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = torch.complex(old[self.re].double(), old[self.im].double()) / self.old_gain.unsqueeze(-1)
        new = self.embed.adjoint(g)
        scaled = new * self.new_gain.unsqueeze(-1)
        return {self.re: scaled.real, self.im: scaled.imag, self.log_gain: (self.new_b.conj() * new).real.sum(-1)}

    def _variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        total = (old[self.re].double() + old[self.im].double()) / self.old_gain.square().unsqueeze(-1)
        new = _weights(self.embed).mT @ total
        half = new * self.new_gain.square().unsqueeze(-1) / 2
        return {self.re: half, self.im: half, self.log_gain: (self.new_b.abs().square() * new / 2).sum(-1)}


@dataclass(frozen=True, eq=False)
class OutputWeights:
    """Real parameters `re`, `im` `(p, n)` of C; `restrict` has C ~ restrict.right(C')."""

    re: str
    im: str
    restrict: ConjugateLinear

    def pullback(self) -> Pullback:
        """Gradients: G' = restrict.right_adjoint(G)."""
        return Pullback((self.re, self.im), self._covectors, self._variances)

    def _covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = self.restrict.right_adjoint(torch.complex(old[self.re].double(), old[self.im].double()))
        return {self.re: new.real, self.im: new.imag}

    def _variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        half = (old[self.re].double() + old[self.im].double()) @ _weights(self.restrict).mT / 2
        return {self.re: half, self.im: half}


def real_matrix_pullback(name: str, left: Tensor | None, right: Tensor | None) -> Pullback:
    """For a real matrix with X ~ left X' right: gradients follow as G' = left^T G right^T."""

    def through(power: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        def apply(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
            g = old[name].double()
            g = g if left is None else power(left).mT @ g
            return {name: g if right is None else g @ power(right).mT}

        return apply

    return Pullback((name,), through(lambda t: t), through(torch.square))


def _weights(transform: ConjugateLinear) -> Tensor:
    squared = transform.linear.abs().square()
    return squared if transform.conjugate is None else squared + transform.conjugate.abs().square()
