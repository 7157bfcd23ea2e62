"""The largest gain of a system with many inputs and outputs, by power iteration at many frequencies at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.linalg.elementary import complex_expm1, product
from compressm.linalg.statespace import StateSpace

_SEARCH_ITERATIONS, _FINAL_ITERATIONS = 3, 30  # on the grid, and at the best point
_AGREEMENT = 1e-3  # of a gain in single precision with that in double, else the search is repeated in double
_GENERIC = 2.399963  # the angle between the phases of the first vectors
_Map = Callable[[Tensor], Tensor]


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
        known = system.log_a is not None and bool(torch.isfinite(system.log_a).all())
        return cls(a, b, c, system.d, system.log_a if known else None)

    def single(self) -> PowerIteration | None:
        """The same in single precision with weights of size 1, None where there is nothing but D."""
        sizes = float(self.b.abs().max()), float(self.c.abs().max())
        if 0 in sizes:
            return None
        dtype = torch.complex64 if self.b.is_complex() else torch.float32
        b, c = ((t / size).to(dtype) for t, size in zip((self.b, self.c), sizes, strict=True))
        d = None if self.d is None or not bool(self.d.any()) else (self.d / sizes[0] / sizes[1]).to(dtype)
        return replace(self, b=b, c=c, d=d, scale=self.scale * sizes[0] * sizes[1])

    def gains(self, omega: Tensor, iterations: int, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower estimates `(F,)` of the gain at each frequency, and the unit vectors `(m, F)` that are amplified so."""
        forward, adjoint, dtype = self._maps(omega, iterations)
        if v is None:
            phases = torch.arange(self.b.shape[-1], dtype=torch.float64)[:, None] * (1 + omega)
            v = torch.exp(1j * phases * _GENERIC)
        v, _ = _unit(v.to(dtype))
        y, size = _unit(forward(v))
        for _ in range(iterations - 1):
            v, _ = _unit(adjoint(y))
            y, size = _unit(forward(v))
        return size.double() * self.scale, v

    def _maps(self, omega: Tensor, times: int) -> tuple[_Map, _Map, torch.dtype]:
        """What applies G and its adjoint; for many `times` at one frequency the matrix, where that is the smaller."""
        b, c, d, (s, t) = self.b, self.c, self.d, self._resolvent(omega)

        def forward(v: Tensor) -> Tensor:
            y = product(c, _through(product(b, v), s, t))
            return y if d is None else y + product(d, v)

        def adjoint(y: Tensor) -> Tensor:
            v = product(b.mH, _through(product(c.mH, y), s.conj(), None if t is None else -t.conj()))
            return v if d is None else v + product(d.mH, y)

        if len(omega) > 1 or times < _FINAL_ITERATIONS or len(c) * b.shape[-1] > b.numel() + c.numel():
            return forward, adjoint, s.dtype
        response = product(c, _through(b.to(s.dtype), s, t))
        response = response if d is None else response + d
        return response.matmul, response.mH.matmul, s.dtype

    def _resolvent(self, omega: Tensor) -> tuple[Tensor, Tensor | None]:
        """The diagonal `(n, F)`; of pairs the entries (s, t) of the blocks [[s, t], [-t, s]]."""

        def inverse(a: Tensor, log_a: Tensor | None) -> Tensor:
            if log_a is not None:
                return -1 / complex_expm1(log_a.unsqueeze(-1) - 1j * omega)
            return 1 / (1 - torch.exp(-1j * omega) * a.unsqueeze(-1))

        dtype = torch.complex64 if self.b.dtype in (torch.complex64, torch.float32) else torch.complex128
        plain = inverse(self.a, self.log_a)
        if self.b.is_complex():
            return plain.to(dtype), None
        other = inverse(self.a.conj(), None if self.log_a is None else self.log_a.conj())
        return ((plain + other) / 2).to(dtype), ((plain - other) * 0.5j).to(dtype)


def power_peak(iteration: PowerIteration, refined: Callable[[_Map], tuple[Tensor, float]]) -> tuple[Tensor, float]:
    """The frequency `(1,)` of the largest gain that `refined` finds, and a lower estimate of the gain there.

    The search is in single precision, where what is found there stands in double: an error that is small beside the
    two systems whose difference it is would be round-off.
    """
    quick = iteration.single()
    if quick is not None:
        best, _ = refined(lambda omega: quick.gains(omega, _SEARCH_ITERATIONS)[0])
        rough, v = quick.gains(best, _FINAL_ITERATIONS)
        value, _ = iteration.gains(best, 1, v)
        if bool((rough - value).abs() <= _AGREEMENT * value):
            return best, float(value)
    best, largest = refined(lambda omega: iteration.gains(omega, _SEARCH_ITERATIONS)[0])
    return best, max(float(iteration.gains(best, _FINAL_ITERATIONS)[0]), largest)


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """The columns at size 1, and their sizes."""
    size = torch.linalg.vector_norm(v, dim=0)
    return v / size.clamp_min(torch.finfo(size.dtype).tiny), size


def _through(x: Tensor, s: Tensor, t: Tensor | None) -> Tensor:
    if t is None:
        return s * x
    real, imaginary = x.chunk(2)
    return torch.cat([torch.addcmul(s * real, t, imaginary), torch.addcmul(s * imaginary, t, real, value=-1)])
