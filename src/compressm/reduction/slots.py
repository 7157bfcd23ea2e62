"""From a reduced dense system to the stored states of a diagonal layer."""

from __future__ import annotations

import cmath
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressm.linalg.elementary import product
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
    """A diagonal system with complex states, and the maps between the old and new stored states.

    Of the states of each system of a bank the first `counts` `(*h,)` are in use, and they stand for `real_orders`
    `(*h,)` real states; the others are without meaning until `pad` makes them idle.
    """

    system: StateSpace
    restrict: ConjugateLinear
    embed: ConjugateLinear
    counts: Tensor
    real_orders: Tensor


def store(full: StateSpace, projected: Projected, basis: ModalBasis, frame: Frame) -> StoredSystem:
    """The stored form of a reduced system with the modal basis A_r R = R diag(poles), L = R^{-1}.

    Real frame, xi = [Re x; Im x]: the new state of a conjugate pair is eta = L W^T xi, and the old states are
    xi ~ V (R eta + conj(R eta)), so C' = 2 C_r R; for a real pole xi ~ V R eta. Written for x itself, both are maps
    of the form x' = M x + N conj(x). Complex frame: x' = L W* x, x ~ V R x'.
    """
    small = projected.system
    rows, columns = product(basis.left, projected.projection.w.mH), product(projected.projection.v, basis.right)
    b, c = product(basis.left, small.b), product(small.c, basis.right)
    if frame is Frame.COMPLEX:
        scale = state_scales(full, basis.poles, b, c)
        restrict, embed = ConjugateLinear(rows), ConjugateLinear(columns)
        real_orders = basis.counts
    else:
        real = basis.is_real
        one = torch.ones(basis.slots, dtype=torch.complex128)
        b = b * torch.where(real, one * _REAL_B, one).unsqueeze(-1)
        c = c * torch.where(real, one * _REAL_C, one * 2).unsqueeze(-2)
        scale = state_scales(full, basis.poles, b, c)
        restrict, embed = _stored_maps(rows, columns, real)
        real_orders = 2 * basis.counts - real.sum(-1)
    system = replace(full, a=basis.poles, b=b * scale.unsqueeze(-1), c=c / scale.unsqueeze(-2), d=small.d, log_a=None)
    maps = _scale_rows(restrict, scale), _scale_columns(embed, 1 / scale)
    return StoredSystem(system, *maps, basis.counts, real_orders)


def pad(stored: StoredSystem, slots: int) -> StoredSystem:
    """The same system with `slots` stored states, idle ones after those in use: c = 0, and b of the usual size so that
    c can learn.

    No two idle states of a system are alike: each has its own pole on a circle and its own direction of b.
    """
    missing = slots - stored.system.order
    if missing <= 0 and bool((stored.counts == stored.system.order).all()):
        return stored
    system, maps = stored.system, (stored.restrict, stored.embed)
    place = torch.arange(slots)
    idle = place >= stored.counts.unsqueeze(-1)  # (*h, slots)
    index = (place - stored.counts.unsqueeze(-1) + 1).clamp_min(0).double()
    sizes = _mean_size(system, stored.counts)
    channels = torch.arange(1, system.inputs + 1, dtype=torch.float64)
    idle_b = torch.exp(1j * (_GOLDEN_ANGLE * channels**2 * index.unsqueeze(-1) + 1)) * sizes[..., None, None]
    idle_a = _PADDING_RADIUS * torch.exp(1j * _GOLDEN_ANGLE * index)

    def grown(t: Tensor, dim: int) -> Tensor:
        shape = list(t.shape)
        shape[dim] = max(missing, 0)
        return torch.cat([t, t.new_zeros(shape)], dim)

    def cleared(transform: ConjugateLinear, dim: int) -> ConjugateLinear:
        gone = idle.unsqueeze(-1 if dim == -2 else -2)
        linear = grown(transform.linear, dim).masked_fill(gone, 0)
        other = transform.conjugate
        return ConjugateLinear(linear, None if other is None else grown(other, dim).masked_fill(gone, 0))

    padded = replace(
        system,
        a=torch.where(idle, idle_a, grown(system.a, -1)),
        b=torch.where(idle.unsqueeze(-1), idle_b, grown(system.b, -2)),
        c=grown(system.c, -1).masked_fill(idle.unsqueeze(-2), 0),
    )
    return StoredSystem(padded, cleared(maps[0], -2), cleared(maps[1], -1), stored.counts, stored.real_orders)


def _mean_size(system: StateSpace, counts: Tensor) -> Tensor:
    """The mean |b| `(*h,)` over the states in use, 1 where there are none."""
    used = torch.arange(system.order) < counts.unsqueeze(-1)
    total = (system.b.abs() * used.unsqueeze(-1)).sum((-1, -2))
    number = counts * system.inputs
    return torch.where(number > 0, total / number.clamp_min(1), torch.ones_like(total))


def pad_dense(system: StateSpace, restrict: Tensor, embed: Tensor, slots: int) -> tuple[StateSpace, Tensor, Tensor]:
    """As `pad`, for real dense systems and their two maps: idle states with c = 0, different poles and rows of b."""
    missing, n, h = slots - system.order, system.order, system.batch_shape
    if missing <= 0:
        return system, restrict, embed
    size = system.b.abs().mean((-1, -2), keepdim=True) if system.b.numel() else system.b.new_ones(*h, 1, 1)
    index = torch.arange(1, missing + 1, dtype=torch.float64)
    channels = torch.arange(1, system.inputs + 1, dtype=torch.float64)
    idle_b = torch.cos(_GOLDEN_ANGLE * channels**2 * index.unsqueeze(-1) + 1) * size
    a = system.a.new_zeros(*h, slots, slots)
    a[..., :n, :n] = system.a
    a[..., n:, n:] = torch.diag(_PADDING_RADIUS * torch.cos(_GOLDEN_ANGLE * index))
    b = torch.cat([system.b, idle_b], -2)
    c = torch.cat([system.c, system.c.new_zeros(*h, system.outputs, missing)], -1)
    restrict = torch.cat([restrict, restrict.new_zeros(*h, missing, restrict.shape[-1])], -2)
    embed = torch.cat([embed, embed.new_zeros(*h, embed.shape[-2], missing)], -1)
    return replace(system, a=a, b=b, c=c), restrict, embed


def nothing(full: StateSpace, feedthrough: Tensor | None) -> StoredSystem:
    """The stored form of a system whose input-output map is `feedthrough` only: no states."""
    n, h = full.order, full.batch_shape
    empty = torch.zeros(*h, 0, dtype=torch.complex128)
    system = replace(
        full,
        a=empty,
        b=empty.new_zeros(*h, 0, full.inputs),
        c=empty.new_zeros(*h, full.outputs, 0),
        d=feedthrough,
        log_a=None,
    )
    rows, columns, none = empty.new_zeros(*h, 0, n), empty.new_zeros(*h, n, 0), torch.zeros(h, dtype=torch.long)
    return StoredSystem(system, ConjugateLinear(rows, rows), ConjugateLinear(columns, columns), none, none)


def _stored_maps(rows: Tensor, columns: Tensor, real: Tensor) -> tuple[ConjugateLinear, ConjugateLinear]:
    n = rows.shape[-1] // 2
    if rows.shape[-1] != 2 * n or columns.shape[-2] != 2 * n:
        raise ValueError("The real frame of a complex system has an even number of states.")
    pair = torch.where(real, torch.zeros(()), torch.ones(())).to(torch.complex128)
    row_gain = torch.where(
        real, torch.full((), _REAL_B, dtype=torch.complex128), torch.ones((), dtype=torch.complex128)
    )
    rows = rows * row_gain.unsqueeze(-1)
    from_re, from_im = rows[..., :n], rows[..., n:]
    restrict = ConjugateLinear((from_re - 1j * from_im) / 2, (from_re + 1j * from_im) / 2)
    upper, lower, pair = columns[..., :n, :], columns[..., n:, :], pair.unsqueeze(-2)
    to_x, mirrored = upper + 1j * lower, upper.conj() + 1j * lower.conj()
    # a real pole's state is eta = Re(e^{i phi} x'), whatever x' the gradient asks about
    linear = to_x * torch.where(real.unsqueeze(-2), torch.full((), _REAL_C / 2, dtype=torch.complex128), pair)
    conjugate = mirrored * pair + to_x * (1 - pair) * (_REAL_C.conjugate() / 2)
    return restrict, ConjugateLinear(linear, conjugate)


def _scale_rows(transform: ConjugateLinear, scale: Tensor) -> ConjugateLinear:
    s = scale.unsqueeze(-1)
    return ConjugateLinear(transform.linear * s, None if transform.conjugate is None else transform.conjugate * s)


def _scale_columns(transform: ConjugateLinear, scale: Tensor) -> ConjugateLinear:
    s = scale.unsqueeze(-2)
    return ConjugateLinear(transform.linear * s, None if transform.conjugate is None else transform.conjugate * s)
