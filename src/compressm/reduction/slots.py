"""From a reduced dense system to the stored states of a diagonal layer."""

from __future__ import annotations

import cmath
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.linalg.forms import Frame
from compressm.linalg.modal import ModalBasis, state_scales
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import Projected
from compressm.reduction.result import ConjugateLinear

# A state with a real pole needs no imaginary parts. With Im b = 0 and Im c = 0 the gradients of those parts and of the
# pole's angle vanish identically, so such a state gets b (1 + i) e^{-i phi} and c e^{i phi}: Re(c b) is the same, and
# for a phi that is no multiple of pi / 4 every gradient lives.
_TURN = cmath.exp(1j * cmath.pi / 8)
_REAL_B = (1 + 1j) / _TURN
_REAL_C = _TURN
_PADDING_RADIUS = 0.5
_GOLDEN_ANGLE = cmath.pi * (3 - 5**0.5)


@dataclass(frozen=True, eq=False)
class StoredSystem:
    """A diagonal system with complex states, and the maps between the old and new stored states."""

    system: StateSpace
    restrict: ConjugateLinear
    embed: ConjugateLinear
    real_order: int


def store(full: StateSpace, projected: Projected, basis: ModalBasis, frame: Frame) -> StoredSystem:
    """The stored form of a reduced system with the modal basis A_r R = R diag(poles), L = R^{-1}.

    Real frame, xi = [Re x; Im x]: the new state of a conjugate pair is eta = L W^T xi, and the old states are
    xi ~ V (R eta + conj(R eta)), so C' = 2 C_r R; for a real pole xi ~ V R eta. Written for x itself, both are maps
    of the form x' = M x + N conj(x). Complex frame: x' = L W* x, x ~ V R x'.
    """
    small = projected.system
    rows = basis.left @ projected.projection.w.to(torch.complex128).mH
    columns = projected.projection.v.to(torch.complex128) @ basis.right
    b, c = basis.left @ small.b.to(torch.complex128), small.c.to(torch.complex128) @ basis.right
    if frame is Frame.COMPLEX:
        scale = state_scales(full, basis.poles, b, c)
        restrict, embed = ConjugateLinear(rows), ConjugateLinear(columns)
        real_order = basis.slots
    else:
        real = basis.is_real
        one = torch.ones(basis.slots, dtype=torch.complex128)
        b = b * torch.where(real, one * _REAL_B, one).unsqueeze(-1)
        c = c * torch.where(real, one * _REAL_C, one * 2)
        scale = state_scales(full, basis.poles, b, c)
        restrict, embed = _stored_maps(rows, columns, real)
        real_order = int((2 - real.long()).sum())
    system = replace(full, a=basis.poles, b=b * scale.unsqueeze(-1), c=c / scale, d=small.d, log_a=None)
    return StoredSystem(system, _scale_rows(restrict, scale), _scale_columns(embed, 1 / scale), real_order)


def pad(stored: StoredSystem, slots: int) -> StoredSystem:
    """The same system with idle states up to `slots`: c = 0, and b of the usual size so that c can learn.

    No two idle states are alike: each has its own pole on a circle and its own direction of b.
    """
    missing = slots - stored.system.order
    if missing <= 0:
        return stored
    system, n = stored.system, stored.restrict.linear.shape[-1]
    size = system.b.abs().mean() if system.b.numel() else system.b.new_ones(()).real
    index = torch.arange(1, missing + 1, dtype=torch.float64)
    idle_a = _PADDING_RADIUS * torch.exp(1j * _GOLDEN_ANGLE * index)
    channels = torch.arange(1, system.inputs + 1, dtype=torch.float64)
    idle_b = torch.exp(1j * (_GOLDEN_ANGLE * channels**2 * index.unsqueeze(-1) + 1)) * size
    zeros = torch.zeros(system.outputs, missing, dtype=torch.complex128)
    padded = replace(
        system,
        a=torch.cat([system.a, idle_a]),
        b=torch.cat([system.b, idle_b]),
        c=torch.cat([system.c, zeros], -1),
    )

    restrict = _extend(stored.restrict, stored.restrict.linear.new_zeros(missing, n), -2)
    embed = _extend(stored.embed, stored.embed.linear.new_zeros(n, missing), -1)
    return StoredSystem(padded, restrict, embed, stored.real_order)


def pad_dense(system: StateSpace, restrict: Tensor, embed: Tensor, slots: int) -> tuple[StateSpace, Tensor, Tensor]:
    """As `pad`, for a real dense system and its two maps: idle states with c = 0 and different poles and rows of b."""
    missing = slots - system.order
    if missing <= 0:
        return system, restrict, embed
    size = system.b.abs().mean() if system.b.numel() else system.b.new_ones(())
    index = torch.arange(1, missing + 1, dtype=torch.float64)
    channels = torch.arange(1, system.inputs + 1, dtype=torch.float64)
    idle_b = torch.cos(_GOLDEN_ANGLE * channels**2 * index.unsqueeze(-1) + 1) * size
    a = torch.block_diag(system.a, torch.diag(_PADDING_RADIUS * torch.cos(_GOLDEN_ANGLE * index)))
    b, c = torch.cat([system.b, idle_b]), torch.cat([system.c, system.c.new_zeros(system.outputs, missing)], -1)
    restrict = torch.cat([restrict, restrict.new_zeros(missing, restrict.shape[-1])])
    embed = torch.cat([embed, embed.new_zeros(embed.shape[0], missing)], -1)
    return replace(system, a=a, b=b, c=c), restrict, embed


def nothing(full: StateSpace, feedthrough: Tensor | None) -> StoredSystem:
    """The stored form of a system whose input-output map is `feedthrough` only: no states."""
    n, empty = full.order, torch.zeros(0, dtype=torch.complex128)
    system = replace(
        full, a=empty, b=empty.new_zeros(0, full.inputs), c=empty.new_zeros(full.outputs, 0), d=feedthrough, log_a=None
    )
    rows, columns = empty.new_zeros(0, n), empty.new_zeros(n, 0)
    return StoredSystem(system, ConjugateLinear(rows, rows), ConjugateLinear(columns, columns), 0)


def _extend(transform: ConjugateLinear, zeros: Tensor, dim: int) -> ConjugateLinear:
    linear = torch.cat([transform.linear, zeros], dim)
    return ConjugateLinear(
        linear, None if transform.conjugate is None else torch.cat([transform.conjugate, zeros], dim)
    )


def _stored_maps(rows: Tensor, columns: Tensor, real: Tensor) -> tuple[ConjugateLinear, ConjugateLinear]:
    n = rows.shape[-1] // 2
    if rows.shape[-1] != 2 * n or columns.shape[-2] != 2 * n:
        raise ValueError("The real frame of a complex system has an even number of states.")
    pair = torch.where(real, torch.zeros(()), torch.ones(())).to(torch.complex128)
    row_gain = torch.where(
        real, torch.full((), _REAL_B, dtype=torch.complex128), torch.ones((), dtype=torch.complex128)
    )
    from_re, from_im = rows[:, :n] * row_gain[:, None], rows[:, n:] * row_gain[:, None]
    restrict = ConjugateLinear((from_re - 1j * from_im) / 2, (from_re + 1j * from_im) / 2)
    to_x = columns[:n] + 1j * columns[n:]
    mirrored = columns[:n].conj() + 1j * columns[n:].conj()
    # a real pole's state is eta = Re(e^{i phi} x'), whatever x' the gradient asks about
    linear = to_x * torch.where(real, torch.full((), _REAL_C / 2, dtype=torch.complex128), pair)
    conjugate = mirrored * pair + to_x * (1 - pair) * (_REAL_C.conjugate() / 2)
    return restrict, ConjugateLinear(linear, conjugate)


def _scale_rows(transform: ConjugateLinear, scale: Tensor) -> ConjugateLinear:
    s = scale.unsqueeze(-1)
    return ConjugateLinear(transform.linear * s, None if transform.conjugate is None else transform.conjugate * s)


def _scale_columns(transform: ConjugateLinear, scale: Tensor) -> ConjugateLinear:
    return ConjugateLinear(
        transform.linear * scale, None if transform.conjugate is None else transform.conjugate * scale
    )
