"""A reduced system fitted to inputs that the layer has seen: C in closed form, poles by Gauss-Newton steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from compressm.linalg.parallel import side_by_side
from compressm.linalg.statespace import StateSpace

RCOND = 1e-3  # combinations of states that move less than this, against the one that moves most, get no weight
_STEPS = 10  # of Gauss-Newton, at most
_TRIES = 4  # dampings tried in one of them
_ENOUGH = 1e-2  # relative gain of a step below which no other is made
_DAMPING, _EASIER, _HARDER = 1e-2, 0.2, 5.0
_LONGEST_MOVE = 0.5  # of the logarithm of a decay rate, and of an angle, in one step
_FASTEST_MOVED = math.log(-math.log(0.1))  # no pole is moved nearer to 0 than this
_LEAST_POSITIONS = 10  # for each real output weight of one output
_NUMBERS = 2_500_000  # in the states of as many systems of a bank as are fitted together
_ROUNDING = 1e-10  # of |y|^2: what single precision may leave of an error
_FASTEST = -40.0  # the least log|pole|; such a state is gone after one step


@dataclass(frozen=True, eq=False)
class Samples:
    """Sequences u `(S, L, H m)` with the output to be met y `(S, L, H p)`, D u left out, on the CPU.

    Where `data` `(S, L)` is False u is zero and y does not count.
    """

    u: Tensor
    y: Tensor
    data: Tensor

    def __getitem__(self, index: slice) -> Samples:
        return Samples(self.u[index], self.y[index], self.data[index])

    def of(self, systems: Tensor, count: int) -> Samples:
        """What some of the `count` systems of a bank see, by indices."""
        if len(systems) == count:
            return self
        u, y = (x.unflatten(-1, (count, -1))[:, :, systems].flatten(-2) for x in (self.u, self.y))
        return Samples(u, y, self.data)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The fitted system, what that added to C, and |y - y_r| / |y| on samples that the fit did not see."""

    system: StateSpace
    change: Tensor
    before: float
    after: float


@dataclass(frozen=True)
class NotFitted:
    """Why a fit that was asked for changed nothing."""

    reason: str


def least_positions(small: StateSpace) -> int:
    """How many positions of data a fit of `small` needs at least."""
    return _LEAST_POSITIONS * small.order * (2 if small.is_complex else 1)


def fit(small: StateSpace, fitting: Samples, checking: Samples, limit: Tensor) -> Fitted | NotFitted:
    """Minimise sum |y_k - y_r,k|^2 over C and, for diagonal complex states, over the poles; B and D stay.

    For given poles the best C is a linear least squares problem. With it put in, the poles follow by Gauss-Newton steps
    with damping (variable projection: Golub and Pereyra 1973, in the form of Kaufman 1975), in the logarithm of the
    decay rate and the angle, so that they stay inside the circle of radius `limit` `(*h,)`. States that are idle
    (c = 0) stay idle. Each system of a bank is fitted for itself, and keeps what it had unless the fit, rounded to
    single precision, lowers the error on `checking` too. NotFitted where no system is changed: the samples are too few,
    the error is round-off, or it cannot be lowered.
    """
    if small.output != "real" or small.order == 0:
        return NotFitted("its output is complex, or no state is left")
    positions = int(fitting.data.sum())
    if positions < least_positions(small):
        return NotFitted(f"{positions} positions to fit to; {least_positions(small)} are needed")
    count = small.batch_shape.numel()
    bank, limits = small.with_batch(count), limit.reshape(-1)
    each = max(1, _NUMBERS // (fitting.data.numel() * small.order))
    parts = [torch.arange(start, min(start + each, count)) for start in range(0, count, each)]
    samples = [(fitting.of(part, count), checking.of(part, count)) for part in parts]
    found = side_by_side([partial(_fitted, bank[k], *seen, limits[k]) for k, seen in zip(parts, samples, strict=True)])
    before, after, whole = (torch.cat([getattr(f, name) for f in found]) for name in ("before", "after", "whole"))
    better = (after < before) & (before > _ROUNDING * whole)
    if not bool(better.any()):
        return NotFitted("no fit lowers the error on the sequences that are left out")
    a, c = torch.cat([f.system.a for f in found]), torch.cat([f.system.c for f in found])
    a = torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, bank.a)
    c = torch.where(better[:, None, None], c, bank.c)
    fitted = replace(bank, a=a, c=c, log_a=None).with_batch(*small.batch_shape)
    lost = float(before.sum()), float(torch.where(better, after, before).sum())
    return Fitted(fitted, fitted.c - small.c, *((x / float(whole.sum())) ** 0.5 for x in lost))


@dataclass(frozen=True, eq=False)
class _Found:
    """The fitted systems, and on the samples to check sum |y - y_r|^2 before and after, and sum |y|^2."""

    system: StateSpace
    before: Tensor
    after: Tensor
    whole: Tensor


def _fitted(bank: StateSpace, fitting: Samples, checking: Samples, limit: Tensor) -> _Found:
    problem = _Problem(bank, fitting)
    best = problem.best(problem.log_a)
    if best.log_a is not None:
        best = _move_poles(problem, best, limit)
    check = _Problem(bank, checking)
    before, after = check.squares(check.log_a, check.weights), check.squares(*_as_stored(best))
    a = bank.a if best.log_a is None else torch.exp(best.log_a)
    c = _complex(best.weights) if bank.is_complex else best.weights
    return _Found(replace(bank, a=a, c=c, log_a=None), before, after, check.target.square().sum((-1, -2)))


@dataclass(frozen=True, eq=False)
class _Point:
    """Poles with output weights [Re C, Im C] `(H, p, q)`, and the squared error `(H,)` of each system."""

    log_a: Tensor | None
    weights: Tensor
    error: Tensor


class _Problem:
    """One bank `(H,)` on given samples: K positions of data, q real signals for each output to be made of.

    `log_a` are the poles at the start, None where poles are not to be moved.
    """

    def __init__(self, bank: StateSpace, samples: Samples) -> None:
        self._data = samples.data
        count, length = samples.data.shape
        h = bank.batch_shape[0]
        self.target = self._flat(samples.y.double().reshape(count, length, h, bank.outputs).movedim(2, 0))
        u = samples.u.double()
        self.weights = torch.cat([bank.c.real, bank.c.imag], -1) if bank.is_complex else bank.c
        used = (bank.c != 0).any(-2)
        self._used = (torch.cat([used, used], -1) if bank.is_complex else used).unsqueeze(-2)
        self.log_a: Tensor | None = None
        if bank.is_diagonal and bank.is_complex:
            log_a = torch.log(bank.a) if bank.log_a is None else bank.log_a
            self.log_a = torch.complex(log_a.real.clamp_min(_FASTEST), log_a.imag)
            drive = u.reshape(count, length, h, bank.inputs).movedim(2, 0).to(bank.b.dtype) @ bank.b.mT.unsqueeze(1)
            self._still = torch.fft.fft(drive.mT, n=2 * length)  # the spectrum of B u, (H, S, r, 2 L)
        else:
            eye = torch.eye(bank.order, dtype=bank.a.dtype).expand(h, -1, -1)
            states = replace(bank, c=eye, d=None, output="complex").simulate(u)
            self._still = self._arranged(states.reshape(count, length, h, -1).movedim(2, 0))

    def squares(self, log_a: Tensor | None, weights: Tensor) -> Tensor:
        """The sum of |y - y_r|^2 of each system."""
        return (self.target - self.signals(log_a)[0] @ weights.mT).square().sum((-1, -2))

    def signals(self, log_a: Tensor | None, slopes: bool = False) -> tuple[Tensor, Tensor | None]:
        """[Re x, -Im x] `(H, K, q)`, and with `slopes` the same of dx / dlog(pole)."""
        if log_a is None:
            return self._still, None
        length = self._data.shape[1]
        lag = torch.arange(length, dtype=torch.float64)
        kernel = torch.exp(log_a.unsqueeze(-1) * lag)  # (H, r, L)
        x = self._filtered(kernel)
        return x, self._filtered(kernel * lag) if slopes else None

    def best(self, log_a: Tensor | None) -> _Point:
        """The best C for these poles: the least change of the present one."""
        x, _ = self.signals(log_a)
        basis = _whitening(x)
        left = self.target - x @ self.weights.mT
        change = basis @ (basis.mT @ (x.mT @ left))
        return _Point(log_a, self.weights + change.mT, (left - x @ change).square().sum((-1, -2)))

    def _filtered(self, kernel: Tensor) -> Tensor:
        length = kernel.shape[-1]
        x = torch.fft.ifft(self._still * torch.fft.fft(kernel, n=2 * length).unsqueeze(1))[..., :length]
        return self._arranged(x.mT)

    def _arranged(self, x: Tensor) -> Tensor:
        parts = torch.cat([x.real, -x.imag], -1) if x.is_complex() else x  # Re(c x) = parts [Re c, Im c]
        return self._flat(parts) * self._used

    def _flat(self, values: Tensor) -> Tensor:
        """`(H, S, L, k)` as `(H, K, k)`: the positions of data only."""
        return values[:, self._data]


def _move_poles(problem: _Problem, point: _Point, limit: Tensor) -> _Point:
    """Gauss-Newton steps with Levenberg's damping, for each system its own."""
    if point.log_a is None:
        return point
    damping = torch.full_like(point.error, _DAMPING)
    slowest = torch.log(-torch.log(limit)).unsqueeze(-1)
    fastest = torch.log(-point.log_a.real).clamp_min(_FASTEST_MOVED)
    active = torch.ones_like(point.error, dtype=torch.bool)
    for _ in range(_STEPS):
        normal, gradient = _normal_equations(problem, point)
        before, waiting = point, active
        for _ in range(_TRIES):
            move = _damped(normal, gradient, damping).clamp(-_LONGEST_MOVE, _LONGEST_MOVE).unflatten(-1, (-1, 2))
            trial = problem.best(_moved(before.log_a, move, slowest, fastest))
            good = waiting & (trial.error < before.error)
            damping = torch.where(waiting, damping * torch.where(good, _EASIER, _HARDER), damping)
            point, waiting = _chosen(good, trial, point), waiting & ~good
            if not bool(waiting.any()):
                break
        active = active & (before.error - point.error > _ENOUGH * before.error)
        if not bool(active.any()):
            break
    return point


def _moved(log_a: Tensor | None, move: Tensor, slowest: Tensor, fastest: Tensor) -> Tensor | None:
    if log_a is None:
        return None
    rate = torch.log(-log_a.real) + move[..., 0]
    return torch.complex(-torch.exp(torch.minimum(torch.maximum(rate, slowest), fastest)), log_a.imag + move[..., 1])


def _normal_equations(problem: _Problem, point: _Point) -> tuple[Tensor, Tensor]:
    """J^T J `(H, 2 r, 2 r)` and J^T e for (log decay, angle) of each state, C being fitted anew for each."""
    x, w = problem.signals(point.log_a, slopes=True)
    if point.log_a is None or w is None:
        raise ValueError("This problem has no poles to move.")
    left = problem.target - x @ point.weights.mT
    rows = x @ _whitening(x)
    w = w - rows @ (rows.mT @ w)  # what C cannot make up for
    h, r = point.log_a.shape
    c = _complex(point.weights).mT.unsqueeze(2)  # (H, r, 1, p)
    factor = torch.stack([point.log_a.real + 0j, torch.full_like(point.log_a, 1j)], -1).unsqueeze(-1)
    slope = c * factor  # (H, r, 2, p): dy = Re(slope w)
    slope = torch.stack([slope.real, slope.imag], 2)  # (H, r, part, 2, p)
    gram = (w.mT @ w).view(h, 2, r, 2, r)
    flat = slope.flatten(1, 3)
    outer = (flat @ flat.mT).view(h, r, 2, 2, r, 2, 2)
    normal = torch.einsum("hisajtb,hsitj->hiajb", outer, gram).reshape(h, 2 * r, 2 * r)
    gradient = torch.einsum("hisap,hsip->hia", slope, (w.mT @ left).view(h, 2, r, -1)).reshape(h, 2 * r)
    return normal, gradient


def _damped(normal: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    floor = (diagonal.amax(-1, keepdim=True) * 1e-12).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.linalg.solve(normal + torch.diag_embed(damping.unsqueeze(-1) * diagonal + floor), gradient)


def _whitening(x: Tensor) -> Tensor:
    """T `(H, q, q)` with x T orthonormal; columns for what hardly moves, whatever the size of each signal, are zero."""
    sizes = torch.linalg.vector_norm(x, dim=-2)
    inverse = torch.where(sizes > 0, 1 / sizes.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    scaled = x * inverse.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(scaled.mT @ scaled)
    kept = (values > RCOND**2 * values.amax(-1, keepdim=True)) & (values > 0)
    roots = torch.where(kept, values.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    return inverse.unsqueeze(-1) * vectors * roots.unsqueeze(-2)


def _as_stored(point: _Point) -> tuple[Tensor | None, Tensor]:
    log_a = point.log_a
    return None if log_a is None else log_a.to(torch.complex64).to(log_a.dtype), point.weights.float().double()


def _chosen(good: Tensor, first: _Point, second: _Point) -> _Point:
    if first.log_a is None or second.log_a is None:
        return second
    log_a = torch.where(good[:, None], first.log_a, second.log_a)
    weights = torch.where(good[:, None, None], first.weights, second.weights)
    return _Point(log_a, weights, torch.where(good, first.error, second.error))


def _complex(weights: Tensor) -> Tensor:
    r = weights.shape[-1] // 2
    return torch.complex(weights[..., :r], weights[..., r:])
