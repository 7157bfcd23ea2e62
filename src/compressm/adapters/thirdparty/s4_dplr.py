"""S4 of the S4 repository with its low-rank part: diagonal plus low rank until the first cut, diagonal from then on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form
from compressm.adapters.holding import held
from compressm.adapters.pullbacks import typical
from compressm.adapters.registry import register_signature
from compressm.adapters.thirdparty.releases import (
    V2,
    V2_HURWITZ,
    V3_LOW_RANK,
    V3_LOW_RANK_ALONE,
    V4_LOW_RANK,
    V4_LOW_RANK_ALONE,
    LowRank,
    release_of,
)
from compressm.adapters.thirdparty.s4 import (
    KernelAdapter,
    continuous_of,
    gain_of,
    read_diagonal,
    select_kernel,
    write_poles,
)
from compressm.adapters.update import LayerUpdate, Pullback, Reset
from compressm.adapters.weights import ViewedWeights
from compressm.errors import AdapterError
from compressm.linalg.elementary import complex_expm1
from compressm.linalg.statespace import StateSpace
from compressm.ops.sampling import Sampling
from compressm.reduction.result import Reduction

_RULE = Sampling.BILINEAR

_logger = logging.getLogger(__name__)


@register_signature(V4_LOW_RANK.shapes("h"))
@register_signature(V3_LOW_RANK.shapes("h"))
@register_signature(V4_LOW_RANK_ALONE.shapes("h"))
@register_signature(V3_LOW_RANK_ALONE.shapes("h"))
@register_signature(V2_HURWITZ.shapes("h"))
@register_signature(V2.shapes("h"))
class S4LowRankAdapter(KernelAdapter):
    """`SSMKernelDPLR`, `SSKernelNPLR`: x' = step (diag(s) - sum_r P_r Q_r^T) x + B u, sampled bilinearly.

    The sum is over all conjugate pairs; Q is the conjugate of P where it is not stored. The kernel keeps C for a length
    l, that of its first pass: what is stored is C (I - Ad^l). It is read and written for that length; the kernel itself
    goes on from there. Where no pass was made yet (l = 0), C is plain.

    What is read of n stored states is a real system of 2 n states, since P couples each state with both partners of
    every pair. A cut stores its reduction as a diagonal system: P and Q become 0, with the rank they had. Their
    gradients vanish there, so that the layer stays diagonal from then on, which is logged. A real pole takes a whole
    state.
    """

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        """The discrete systems: real and dense, or diagonal where P is 0."""
        length = _length(layer)
        if _is_diagonal(layer):
            system = read_diagonal(layer, _RULE)
            if length == 0 or system.log_a is None:
                return system
            c = system.c / _remaining(system.log_a, length).unsqueeze(1)
            return StateSpace(system.a, system.b, c, system.d, log_a=system.log_a)
        a, gain = _sampled(layer)
        release = release_of(layer)
        c = _rows(2 * release.outputs.read(layer))
        if length:
            c = torch.linalg.solve(_kept(a, length), c, left=False)
        b = gain @ _columns(release.inputs.read(layer))
        return StateSpace(a, b, c, release.around.feedthrough(layer))

    def slots(self, layer: nn.Module, system: StateSpace) -> int:
        """The number of stored complex states."""
        return _stored(layer)

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The number of stored states; the order read is twice that until the first cut."""
        return super().prepare(layer, min(order, _stored(layer)))

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The systems' output; the kernel does not keep C for a new length."""
        release = release_of(layer)
        return release.around.response(layer, u, partial(_untouched, release.kernel(layer)))

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The parameters of the reduced systems, in diagonal form."""
        if reduction.restrict is None or reduction.embed is None:
            raise AdapterError("S4: a reduction without maps between old and new states cannot be written.")
        attributes = super().prepare(layer, reduction.order)
        if reduction.keep is not None:
            if not _is_diagonal(layer):
                raise AdapterError("S4: its states act on each other, so a choice of them cannot be kept; balance it.")
            return select_kernel(layer, reduction.keep, attributes)
        if not _is_diagonal(layer):
            _logger.info("%s: from this cut on the layer is diagonal; its low-rank part is 0", type(layer).__name__)
        system, length = reduction.system, _length(layer)
        sampled, tensors = write_poles(layer, system, _RULE)
        gain = gain_of(sampled)
        remaining = _remaining(torch.complex(-sampled.nu, sampled.theta), length) if length else torch.ones_like(gain)
        release = release_of(layer)
        for name in _low_rank(layer):
            rank, h = held(layer, name).shape[:2]
            tensors[name] = torch.zeros(rank, h, system.order, 2, dtype=torch.float64)
        weights = release.inputs.tensors(system.b / gain.unsqueeze(-1))
        weights |= release.outputs.tensors(system.c / 2 * remaining.unsqueeze(1))
        maps = (*_pullbacks(layer, reduction, gain, remaining.unsqueeze(1)), Reset(tuple(tensors)))
        return LayerUpdate(system.order, {**tensors, **weights}, attributes, maps)


def _low_rank(layer: nn.Module) -> tuple[str, ...]:
    """The names of P and, where it is stored, Q."""
    release = release_of(layer)
    return tuple(release.path + name for name in _part(layer).names)


def _part(layer: nn.Module) -> LowRank:
    low_rank = release_of(layer).low_rank
    if low_rank is None:
        raise AdapterError(f"{type(layer).__name__} has no low-rank part.")
    return low_rank


def _stored(layer: nn.Module) -> int:
    """The number of stored complex states."""
    return held(layer, _low_rank(layer)[0]).shape[-2]


def _is_diagonal(layer: nn.Module) -> bool:
    return not any(bool(held(layer, name).any()) for name in _low_rank(layer))


def _length(layer: nn.Module) -> int:
    """The length that C is kept for, a number or a tensor."""
    kernel, name = release_of(layer).kernel(layer), _part(layer).length
    length: object = getattr(kernel, name, None)
    if isinstance(length, int) or (isinstance(length, Tensor) and length.numel() == 1):
        return int(length)
    raise AdapterError(
        f"{type(layer).__name__}: its kernel has a low-rank part, but no {name} that says for which length it keeps C. "
        f"Leave it alone with adapters={{{type(layer).__name__}: None}}."
    )


def _remaining(log_pole: Tensor, length: int) -> Tensor:
    """1 - pole^length."""
    return -complex_expm1(length * log_pole)


def _kept(a: Tensor, length: int) -> Tensor:
    """I - Ad^length."""
    return torch.eye(a.shape[-1], dtype=a.dtype) - torch.linalg.matrix_power(a, length)


def _sampled(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Ad and (I - step A / 2)^{-1} step of the real states [Re x; Im x], (H, 2 n, 2 n).

    Over all pairs Q^T x = 2 Re(Q^T x) of the stored half, so that A = diag(s) - 2 sum_r p_r q_r^T with p = [Re P; Im P]
    and q = [Re Q; -Im Q].
    """
    decay, frequency, step = continuous_of(layer)
    re, im = torch.diag_embed(-decay), torch.diag_embed(frequency)
    a = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
    parts = [ViewedWeights(name).read(layer) for name in _low_rank(layer)]
    p, q = parts[0], parts[1] if len(parts) > 1 else parts[0].conj()
    a = a - 2 * torch.einsum("rhm,rhn->hmn", torch.cat([p.real, p.imag], -1), _rows(q))
    step = step.expand_as(decay).repeat(1, 2).unsqueeze(-1)
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    inverse = torch.linalg.inv(eye - step / 2 * a)
    return inverse @ (eye + step / 2 * a), inverse * step.mT


def _columns(x: Tensor) -> Tensor:
    """Complex columns as real ones, [Re; Im]."""
    return torch.cat([x.real, x.imag], -2)


def _rows(c: Tensor) -> Tensor:
    """Complex rows as the real ones that give Re(c x), [Re, -Im]; gradients of complex rows likewise."""
    return torch.cat([c.real, -c.imag], -1)


def _complex_columns(x: Tensor) -> Tensor:
    re, im = x.chunk(2, -2)
    return torch.complex(re, im)


def _complex_rows(c: Tensor) -> Tensor:
    re, im = c.chunk(2, -1)
    return torch.complex(re, -im)


def _pullbacks(layer: nn.Module, reduction: Reduction, gain: Tensor, remaining: Tensor) -> tuple[Pullback, Pullback]:
    """How gradients of B and C follow: through what B and C are multiplied with, the maps of the states, and again."""
    a, old_gain = _sampled(layer)
    inputs, outputs = release_of(layer).inputs, release_of(layer).outputs
    length, restrict, embed, n = _length(layer), reduction.restrict, reduction.embed, reduction.order
    old_remaining = _kept(a, length) if length else torch.eye(a.shape[-1], dtype=a.dtype)

    def of_inputs(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = _complex_columns(torch.linalg.solve(old_gain.mT, _columns(inputs.value(old))))
        return inputs.tensors(embed.adjoint(g) * gain.conj().unsqueeze(-1)) if embed else {}

    def of_outputs(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = _complex_rows(_rows(outputs.value(old)) @ old_remaining.mT)
        return outputs.tensors(restrict.right_adjoint(g) / remaining.conj()) if restrict else {}

    def variances(old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: typical(value, 2, n) for name, value in old.items()}

    return Pullback(inputs.names, of_inputs, variances), Pullback(outputs.names, of_outputs, variances)


@contextmanager
def _untouched(kernel: nn.Module) -> Iterator[None]:
    """With copies of what a pass of a new length would change in place; as it was afterwards."""
    plain, buffers, parameters = dict(vars(kernel)), dict(kernel._buffers), dict(kernel._parameters)
    table: dict[str, Tensor | None] = kernel._parameters if "C" in parameters else kernel._buffers  # pyright: ignore[reportAssignmentType]
    c = table["C"]
    table["C"] = None if c is None else c * 1.0
    try:
        yield
    finally:
        for now, before in ((kernel._parameters, parameters), (kernel._buffers, buffers)):
            now.clear()
            now.update(before)  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name in set(vars(kernel)) - set(plain):
            delattr(kernel, name)
        vars(kernel).update(plain)
