"""How gradients and moments of input and output weights follow a change of the states."""

from __future__ import annotations

from collections.abc import Mapping
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
        n = self.new_gain.shape[-1]
        return {name: typical(old[name], 0, n) for name in (self.re, self.im, self.log_gain)}


@dataclass(frozen=True, eq=False)
class SampledInputWeights:
    """Real parameters `re`, `im` `(n, m)` of b where B = gain b with complex gains `(n, 1)` that poles and step fix.

    `embed` has B ~ embed(B').
    """

    re: str
    im: str
    embed: ConjugateLinear
    old_gain: Tensor
    new_gain: Tensor

    def pullback(self) -> Pullback:
        """Gradients: G of B is g / conj(gain); G' = embed.adjoint(G); times the new conj(gain)."""
        return Pullback((self.re, self.im), self._covectors, self._variances)

    def _covectors(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = torch.complex(old[self.re].double(), old[self.im].double()) / self.old_gain.conj()
        new = self.embed.adjoint(g) * self.new_gain.conj()
        return {self.re: new.real, self.im: new.imag}

    def _variances(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: typical(old[name], 0, self.new_gain.shape[-2]) for name in (self.re, self.im)}


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
        n = self.restrict.linear.shape[-2]
        return {name: typical(old[name], 1, n) for name in (self.re, self.im)}


def real_matrix_pullback(name: str, left: Tensor | None, right: Tensor | None) -> Pullback:
    """For a real matrix with X ~ left X' right: gradients follow as G' = left^T G right^T."""

    def covectors(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = old[name].double()
        g = g if left is None else left.mT @ g
        return {name: g if right is None else g @ right.mT}

    def variances(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        v = old[name]
        v = v if left is None else typical(v, 0, left.shape[-1])
        return {name: v if right is None else typical(v, 1, right.shape[-2])}

    return Pullback((name,), covectors, variances)


def typical(variances: Tensor, dim: int, size: int) -> Tensor:
    """The geometric mean over the states (along `dim`) of the positive second moments, for `size` new states.

    Second moments have no exact map. Of the rules tried (the variance of uncorrelated entries, the arithmetic mean, the
    leading entries, starting anew) this one trained best after a cut; see experiments/optimizer_policy.py.
    """
    v = variances.double()
    positive = v > 0
    logs = torch.where(positive, v, torch.ones_like(v)).log().sum(dim, keepdim=True)
    count = positive.sum(dim, keepdim=True)
    mean = torch.where(count > 0, (logs / count.clamp_min(1)).exp(), torch.zeros_like(logs))
    return mean.expand(*(size if d == dim else k for d, k in enumerate(v.shape))).clone()
