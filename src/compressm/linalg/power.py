"""The largest gain of a system with many inputs and outputs, by power iteration at many frequencies at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.linalg.elementary import all_finite, column_sizes, largest_part, pole_gaps, product
from compressm.linalg.statespace import StateSpace

_SEARCH_ITERATIONS = 2  # at every frequency that is looked at
_CANDIDATES = 12  # of the first frequencies, at which as many follow
_TURNS = (3, 3, 1, 1, 1, 1)  # frequencies that move to better ones near by in each turn
_FARTHEST, _HALVINGS = torch.pi / 64, 14  # step to a frequency near by; how often it is halved at least
_FINAL_ITERATIONS, _SETTLED = 20, 1e-6  # pairs of iterations at the best one, and the relative gain that ends them
_AGREEMENT = 1e-3  # of a gain in single precision with that in double, else the search is repeated in double
_GENERIC = 2.399963  # the angle between the phases of the first vectors
_Resolvent = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Gains:
    """Lower estimates `sizes` of the gain at `omega` `(F,)`: G v = size y for unit vectors v `(m, F)`, y `(p, F)`."""

    omega: Tensor
    sizes: Tensor
    v: Tensor
    y: Tensor

    def largest(self, count: int) -> Gains:
        """The `count` largest, from the largest."""
        best = self.sizes.argsort(descending=True)[:count]
        return Gains(self.omega[best], self.sizes[best], self.v[:, best], self.y[:, best])


@dataclass(frozen=True, eq=False)
class PowerIteration:
    """What applies G(e^{iw}) = C diag(1 / (1 - e^{-iw} a)) B + D to one vector for each frequency.

    b `(n, m)` and c `(p, n)` are complex; or real, `(2 n, m)` and `(p, 2 n)`, and then those of the real system in
    [Re x; Im x] behind y = Re(C x): products with them are real ones, and a pole with its conjugate acts as a block
    of two rows. G is `scale` times that.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None
    log_a: Tensor | None
    scale: float = 1.0

    @classmethod
    def paired(cls, system: StateSpace) -> PowerIteration:
        """Of one diagonal complex system with real output, in double precision."""
        a, b, c = (t.to(torch.complex128) for t in (system.a, system.b, system.c))
        b, c = torch.cat([b.real, b.imag]), torch.cat([c.real, -c.imag], -1)
        known = system.log_a is not None and all_finite(system.log_a)
        return cls(a, b, c, system.d, system.log_a if known else None)

    def single(self) -> PowerIteration | None:
        """The same in single precision with weights of size 1, None where there is nothing but D."""
        sizes = largest_part(self.b), largest_part(self.c)
        if 0 in sizes:
            return None
        dtype = torch.complex64 if self.b.is_complex() else torch.float32
        b, c = ((t / size).to(dtype) for t, size in zip((self.b, self.c), sizes, strict=True))
        d = None if self.d is None or not bool(self.d.any()) else (self.d / sizes[0] / sizes[1]).to(dtype)
        return replace(self, b=b, c=c, d=d, scale=self.scale * sizes[0] * sizes[1])

    def gains(self, omega: Tensor, iterations: int, v: Tensor | None = None) -> Gains:
        """Lower estimates of the gain at each frequency `(F,)`, from vectors `(m, F)` or one generic vector for all."""
        resolvent = self._resolvent(omega)
        if v is None:
            v = torch.exp(1j * _GENERIC * torch.arange(self.b.shape[-1], dtype=torch.float64)[:, None])
        v, _ = _unit(v.to(resolvent[0].dtype))
        y, size = _unit(self._forward(resolvent, v))
        for _ in range(iterations - 1):
            v, _ = _unit(self._adjoint(resolvent, y))
            y, size = _unit(self._forward(resolvent, v))
        return Gains(omega, size.double() * self.scale, v.expand(-1, len(omega)), y)

    def along(self, omega: Tensor, gains: Gains) -> Tensor:
        """|y* G(e^{iw}) v| for the pairs of unit vectors of `gains`, `(F, K)` for `omega` `(F, K)`.

        Nowhere above the gain there, and for a given pair the cost is that of a sum over the poles.
        """
        driven, seen = product(self.b, gains.v), product(self.c.mH, gains.y).conj()
        (s, t), shape = self._resolvent(omega.flatten()), (-1, *omega.shape)
        if t is None:
            total = torch.einsum("nfk,nf->fk", s.view(shape), seen * driven)
        else:
            (one, two), (first, second) = driven.chunk(2), seen.chunk(2)
            total = torch.einsum("nfk,nf->fk", s.view(shape), first * one + second * two)
            total = total + torch.einsum("nfk,nf->fk", t.view(shape), first * two - second * one)
        if self.d is not None:
            total = total + (gains.y.conj() * product(self.d, gains.v)).sum(0).unsqueeze(-1)
        return total.abs()

    def _forward(self, resolvent: _Resolvent, v: Tensor) -> Tensor:
        y = product(self.c, _through(product(self.b, v), *resolvent))
        return y if self.d is None else y + product(self.d, v)

    def _adjoint(self, resolvent: _Resolvent, y: Tensor) -> Tensor:
        s, t = resolvent
        v = product(self.b.mH, _through(product(self.c.mH, y), s.conj(), None if t is None else -t.conj()))
        return v if self.d is None else v + product(self.d.mH, y)

    def _resolvent(self, omega: Tensor) -> _Resolvent:
        """The diagonal `(n, F)`; of pairs the entries (s, t) of the blocks [[s, t], [-t, s]]."""

        def inverse(a: Tensor, log_a: Tensor | None) -> Tensor:
            turn = -1j * omega
            return 1 / pole_gaps(a, torch.exp(turn), None if log_a is None else (log_a, turn))

        dtype = torch.complex64 if self.b.dtype in (torch.complex64, torch.float32) else torch.complex128
        plain = inverse(self.a, self.log_a)
        if self.b.is_complex():
            return plain.to(dtype), None
        other = inverse(self.a.conj(), None if self.log_a is None else self.log_a.conj())
        return ((plain + other) * 0.5).to(dtype), ((plain - other) * 0.5j).to(dtype)


def power_peak(iteration: PowerIteration, grid: Tensor, narrowest: float) -> tuple[Tensor, float]:
    """The frequency `(1,)` of the largest gain found from those of `grid`, and a lower estimate of the gain there.

    Its steps become as small as `narrowest`, about half the width of the narrowest peak. The search is in single
    precision, where what is found there stands in double: an error that is small beside the two systems whose
    difference it is would be round-off.
    """
    quick = iteration.single()
    if quick is not None:
        found = _climbed(quick, grid, narrowest)
        value = float(iteration.gains(found.omega, 1, found.v).sizes)
        if abs(float(found.sizes) - value) <= _AGREEMENT * value:
            return found.omega, value
    found = _climbed(iteration, grid, narrowest)
    return found.omega, float(found.sizes)


def _climbed(iteration: PowerIteration, grid: Tensor, narrowest: float) -> Gains:
    """The largest gain from those of `grid`: by turns the best vectors for a frequency and the best frequency near by.

    Each turn finds no less than the one before. More is done at fewer frequencies as the best of them show.
    """
    found = iteration.gains(grid, _SEARCH_ITERATIONS)
    found = found.largest(_CANDIDATES)
    found = iteration.gains(found.omega, _SEARCH_ITERATIONS, found.v)
    halvings = max(_HALVINGS, math.ceil(math.log2(_FARTHEST / narrowest)) + 1)
    steps = _FARTHEST * 2.0 ** -torch.arange(halvings, dtype=torch.float64)
    steps = torch.cat([steps.new_zeros(1), steps, -steps])
    for count in _TURNS:
        found = found.largest(count)
        omega = found.omega.unsqueeze(-1) + steps
        best = iteration.along(omega, found).argmax(-1, keepdim=True)
        found = iteration.gains(omega.gather(-1, best).squeeze(-1), _SEARCH_ITERATIONS, found.v)
    found = found.largest(1)
    for _ in range(_FINAL_ITERATIONS):
        before, found = found, iteration.gains(found.omega, _SEARCH_ITERATIONS, found.v)
        if not float(found.sizes) > float(before.sizes) * (1 + _SETTLED):
            break
    return found


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """The columns at size 1, and their sizes."""
    size = column_sizes(v)
    return v * (1 / size.clamp_min(torch.finfo(size.dtype).tiny)), size


def _through(x: Tensor, s: Tensor, t: Tensor | None) -> Tensor:
    if t is None:
        return s * x
    real, imaginary = x.chunk(2)
    return torch.cat([torch.addcmul(s * real, t, imaginary), torch.addcmul(s * imaginary, t, real, value=-1)])
