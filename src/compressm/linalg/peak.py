"""The gain of a discrete system over frequency, and where it is largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compressm.linalg.elementary import complex_expm1
from compressm.linalg.forms import mirrored, realify
from compressm.linalg.parallel import decompose, in_pieces, singular_values
from compressm.linalg.power import PowerIteration, power_peak
from compressm.linalg.statespace import StateSpace

_DIRECT_CHANNELS = 16  # up to this many channels all singular values are cheaper than a power iteration
_POLES = 64  # whose angles are on the first grid: those with the highest peaks of their own
_SPACING = torch.pi / 64  # of the other points of the first grid
_REFINEMENTS = (3, 3, 3, 1, 1, 1)  # points refined about in each round; each has a quarter of the spacing before
_NARROWEST = 1e-16  # decay of a pole in one step that is told from none
_CHUNK = 2**22  # numbers in one block of frequencies
_CONDITIONING = 1e8  # of the eigenvectors with which a dense system is swept in diagonal form


@dataclass(frozen=True, eq=False)
class _Modal:
    """Complex diagonal matrices with G(e^{iw}) = C diag(1 / (1 - e^{-iw} a)) B + D, `(*h, ...)`."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    log_a: Tensor | None

    def resolvent(self, omega: Tensor) -> Tensor:
        """1 / (1 - e^{-iw} a), `(*h, n, F)` for `omega` `(F,)` or `(*h, F)`."""
        row = omega.unsqueeze(-2)
        if self.log_a is not None:
            return -1 / complex_expm1(self.log_a.unsqueeze(-1) - 1j * row)
        return 1 / (1 - torch.exp(-1j * row) * self.a.unsqueeze(-1))


def peak_gain(system: StateSpace, exact: bool = False) -> tuple[float, float]:
    """The largest gain found on a refined grid of one double precision discrete system, and its frequency.

    The gain is reached at that frequency (or larger there): with more than 16 inputs and outputs it comes from a power
    iteration unless `exact`.
    """
    if system.order == 0:
        return (0.0 if system.d is None or system.d.numel() == 0 else float(_norms(system.d))), 0.0
    if system.inputs == 0 or system.outputs == 0:
        return 0.0, 0.0
    symmetric, pairs = system.output == "real", system.is_complex and system.output == "real" and system.is_diagonal
    direct = exact or min(system.inputs, system.outputs) <= _DIRECT_CHANNELS
    if pairs and not direct:
        decay = _decay(system.a, system.log_a)
        angles = _angles(system.a, _heights(decay, system.b, system.c), symmetric=False)  # one of a pair is stored
        best, value = power_peak(PowerIteration.paired(system), _first_grid(angles, symmetric), float(decay.min()))
        return value, float(best)
    modal = _modal(system)
    poles = torch.linalg.eigvals(system.a) if modal is None else modal.a
    decay = _decay(poles, None if modal is None else modal.log_a)
    heights = 1 / decay if modal is None else _heights(decay, modal.b, modal.c)
    grid, narrowest = _first_grid(_angles(poles, heights, symmetric), symmetric), float(decay.min())
    if modal is None or direct:
        gain = partial(exact_gain, system) if modal is None else partial(_direct_gain, modal)
        best, value = _refined(gain, grid, narrowest)
    else:
        best, value = power_peak(PowerIteration(modal.a, modal.b, modal.c, modal.d, modal.log_a), grid, narrowest)
    if exact or not system.is_diagonal:  # a diagonal form of a dense system only finds the place
        value = exact_gain(system, best)[0]
    return float(value), float(best)


def _refined(gain: Callable[[Tensor], Tensor], grid: Tensor, narrowest: float) -> tuple[Tensor, float]:
    """The frequency `(1,)` of the largest gain on a grid and in rounds about its best points, and that gain."""
    omega, gains = grid, gain(grid)
    spacing = _SPACING
    for centres in _rounds(narrowest):
        centre = omega[gains.argsort(descending=True)[:centres]]
        spacing = spacing / 4
        offsets = torch.tensor([-3, -2, -1, 1, 2, 3], dtype=torch.float64) * spacing
        extra = (centre[:, None] + offsets).flatten()
        omega, gains = torch.cat([omega, extra]), torch.cat([gains, gain(extra)])
    return omega[gains.argmax()].reshape(1), float(gains.max())


def peak_gains(system: StateSpace) -> Tensor:
    """The largest gain found on a grid and around its best points, `(*h,)`, for a bank of discrete systems.

    As `peak_gain`, for all systems together; each has its own grid, with the angles of its own poles. A dense
    system whose eigenvectors are too ill-conditioned is looked at on the uniform grid only.
    """
    if system.order == 0 or min(system.inputs, system.outputs) == 0:
        flat = system.with_batch(system.batch_shape.numel())
        still = torch.zeros(flat.batch_shape, dtype=torch.float64) if flat.d is None else _norms(flat.d)
        return still.reshape(system.batch_shape)
    modal, sound = _modal_bank(system)
    size = modal.a.shape[-1] * max(1, system.inputs * system.outputs) * _POLES // 4  # a piece is worth its calls

    def gains(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor]:
        return (_searched(_Modal(a, b, c, d, None), system.output == "real"),)

    (found,) = in_pieces(gains, size, system.batch_shape, modal.a, modal.b, modal.c, modal.d)
    if bool(sound.all()):
        return found
    uniform = torch.linspace(0, torch.pi, 65, dtype=torch.float64)
    uniform = uniform if system.output == "real" else torch.cat([uniform, -uniform])
    slow = _norms(system[~sound].frequency_response(uniform)).amax(-1)
    return torch.index_put(found, (~sound,), slow)


def _searched(modal: _Modal, symmetric: bool) -> Tensor:
    uniform = torch.linspace(0, torch.pi, 65, dtype=torch.float64).expand(*modal.a.shape[:-1], 65)
    decay = _decay(modal.a, modal.log_a)
    angles = _angles(modal.a, _heights(decay, modal.b, modal.c), symmetric)
    omega = torch.cat([uniform, angles], -1) if symmetric else torch.cat([uniform, -uniform, angles], -1)
    gains, spacing = _direct_gain(modal, omega), _SPACING
    for centres in _rounds(float(decay.min())):
        spacing = spacing / 4
        best = gains.argsort(dim=-1, descending=True)[..., :centres]
        offsets = torch.tensor([-3, -2, -1, 1, 2, 3], dtype=torch.float64) * spacing
        extra = (omega.gather(-1, best).unsqueeze(-1) + offsets).flatten(-2)
        omega, gains = torch.cat([omega, extra], -1), torch.cat([gains, _direct_gain(modal, extra)], -1)
    return gains.amax(-1)


def exact_gain(system: StateSpace, omega: Tensor) -> Tensor:
    """The largest singular value of G(e^{iw}) for each frequency of `omega` `(F,)`."""
    states = system.order if system.is_diagonal else system.order * system.order // max(system.outputs, 1) + 1
    chunk = max(1, _CHUNK // max(1, states * system.outputs))
    return torch.cat([_norms(system.frequency_response(part)) for part in omega.split(chunk)])


def _first_grid(angles: Tensor, symmetric: bool) -> Tensor:
    uniform = torch.linspace(0, torch.pi, 65, dtype=torch.float64)
    omega = torch.cat([uniform, angles])
    return (omega.abs() if symmetric else torch.cat([omega, -uniform])).unique()


def _rounds(narrowest: float) -> tuple[int, ...]:
    """How many points are refined about in each round; in the last ones the spacing is below the narrowest peak."""
    further = math.ceil(math.log(_SPACING / narrowest, 4)) + 1 - len(_REFINEMENTS)
    return (*_REFINEMENTS, *[1] * further)


def _decay(poles: Tensor, log_poles: Tensor | None) -> Tensor:
    """1 - |a| of each pole, about half the width of its peak."""
    decay = 1 - poles.abs() if log_poles is None else -torch.expm1(log_poles.real)
    return decay.double().clamp_min(_NARROWEST)


def _heights(decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The largest gain of each pole on its own, in the Frobenius norm."""
    return torch.linalg.vector_norm(b, dim=-1) * torch.linalg.vector_norm(c, dim=-2) / decay


def _angles(poles: Tensor, heights: Tensor, symmetric: bool) -> Tensor:
    """The angles of those with the highest peaks; where each pole has its conjugate, of one of the two."""
    heights = heights.where(poles.imag >= 0, -1) if symmetric and poles.is_complex() else heights
    highest = heights.topk(min(_POLES, heights.shape[-1]), dim=-1).indices
    return torch.angle(poles.gather(-1, highest) + 0j)


def _modal(system: StateSpace) -> _Modal | None:
    """The system in complex diagonal form; None where eigenvectors of a dense one are too ill-conditioned."""
    modal, sound = _modal_bank(system)
    return modal if bool(sound.all()) else None


def _modal_bank(system: StateSpace) -> tuple[_Modal, Tensor]:
    """The systems in complex diagonal form, and for which `(*h,)` that is well enough conditioned."""
    if system.is_complex and system.output == "real":
        system = mirrored(system) if system.is_diagonal else realify(system)
    log_a = None if system.log_a is None or not bool(torch.isfinite(system.log_a).all()) else system.log_a
    sound = torch.ones(system.batch_shape, dtype=torch.bool)
    if system.is_diagonal:
        a, b, c = (t.to(torch.complex128) for t in (system.a, system.b, system.c))
    else:
        a, vectors = decompose(torch.linalg.eig, system.a.to(torch.complex128))
        sizes = singular_values(vectors)
        sound = sizes[..., 0] < _CONDITIONING * sizes[..., -1]
        vectors = torch.where(sound[..., None, None], vectors, torch.eye(system.order, dtype=vectors.dtype))
        b, c = torch.linalg.solve(vectors, system.b.to(a.dtype)), system.c.to(a.dtype) @ vectors
    d = torch.zeros(*c.shape[:-1], b.shape[-1], dtype=a.dtype) if system.d is None else system.d.to(a.dtype)
    return _Modal(a, b, c, d, log_a), sound


def _direct_gain(modal: _Modal, omega: Tensor) -> Tensor:
    """The gains `(*h, F)` at `omega` `(F,)` or `(*h, F)`, from the whole transfer matrix."""
    if modal.c.shape[-2] == modal.b.shape[-1] == 1:
        response = (modal.c * modal.b.mT) @ modal.resolvent(omega) + modal.d
        return response.squeeze(-2).abs()
    chunk = max(1, _CHUNK // (modal.c.shape[-2] * modal.c.shape[-1]))
    c, b, d = (t.unsqueeze(-3) for t in (modal.c, modal.b, modal.d))
    parts = [_norms((c * modal.resolvent(part).mT.unsqueeze(-2)) @ b + d) for part in omega.split(chunk, dim=-1)]
    return torch.cat(parts, -1)


def _norms(response: Tensor) -> Tensor:
    """The largest singular value of each matrix, `(*, p, m)`, from the smaller of its two products."""
    small = response @ response.mH if response.shape[-2] <= response.shape[-1] else response.mH @ response
    return torch.linalg.eigvalsh(small)[..., -1].clamp_min(0).sqrt()
