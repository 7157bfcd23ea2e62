"""Copies of a model's weights, such as an average over time, through the very cut of the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compressm.adapters.registry import LayerRef
from compressm.adapters.uncompiled import uncompiled
from compressm.adapters.update import LayerUpdate
from compressm.errors import SurgeryError
from compressm.linalg.parallel import eigenvalues
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import ConjugateLinear, Reduction


def copy_inside(mirror: nn.Module) -> nn.Module:
    """The copy of the model itself: of an AveragedModel, the average that it holds."""
    return uncompiled(mirror.module if isinstance(mirror, AveragedModel) else mirror)


def mirrored_layer(mirror: nn.Module, layer: LayerRef) -> LayerRef:
    """The layer of that name in a copy of the model.

    Raises SurgeryError where it is missing, of another class, or has tensors of other shapes.
    """
    try:
        module = copy_inside(mirror).get_submodule(layer.name)
    except AttributeError as error:
        raise SurgeryError(f"{type(mirror).__name__} is no copy of the model: it has no '{layer.name}'.") from error
    if type(module) is not type(layer.module) or _shapes(module) != _shapes(layer.module):
        raise SurgeryError(
            f"'{layer.name}' of {type(mirror).__name__} differs from the model's in its class or in shapes. Make the "
            f"copy of the model as it is now, and cut both together from then on."
        )
    return LayerRef(layer.name, module, layer.adapter)


def mirrored_update(mirror: LayerRef, full: StateSpace, reduction: Reduction) -> LayerUpdate:
    """What makes a copy of a layer follow the `reduction` of that layer's system `full`; changes nothing.

    The copy's system (A, B, C) lives in the layer's coordinates, and it is projected as the layer's was:
    A' = restrict A embed, B' = restrict B, C' = C embed. A diagonal layer keeps the diagonal of A', which gives its
    eigenvalues to first order in the difference between copy and layer, because the layer's own A' is diagonal. Where
    such a pole would not be stable, or would turn across the angle 0, the layer's is taken, and so is its A' where a
    dense one would not be stable. So copy and layer share their coordinates after the cut as before, and averaging goes
    on. What a fit added to the layer's C' is added to the copy's. Where a reduction has no maps, or changes D (singular
    perturbation), the copy takes the values of the layer.
    """
    own = mirror.adapter.read(mirror.module).to_double()
    return mirror.adapter.write(mirror.module, _mirrored(own, full, reduction))


def _mirrored(own: StateSpace, full: StateSpace, reduction: Reduction) -> Reduction:
    restrict, embed, system = reduction.restrict, reduction.embed, reduction.system
    if reduction.keep is not None or restrict is None or embed is None or _changes_feedthrough(full, system):
        return reduction
    b, c = restrict(own.b.to(restrict.linear.dtype)), embed.right(own.c.to(embed.linear.dtype))
    b, c = b.to(system.b.dtype), c.to(system.c.dtype)
    if reduction.change is not None:
        c = c + reduction.change.to(c.dtype)
    if not system.is_diagonal:
        a = restrict.linear @ own.a @ embed.linear
        stable = eigenvalues(a).abs().amax(-1) < 1
        a = torch.where(stable[..., None, None], a, system.a.to(a.dtype))
        return replace(reduction, system=replace(system, a=a, b=b, c=c, d=own.d, log_a=None))
    a = system.a + _diagonal(own.a - full.a, restrict, embed).to(system.a.dtype)
    turned = torch.remainder(torch.angle(system.a), 2 * torch.pi) + torch.angle(a / system.a)
    near = (a.abs() > 0) & (a.abs() < 1) & (turned > 0) & (turned < 2 * torch.pi)
    a = torch.where(near, a, system.a)
    log_a = None if system.log_a is None else system.log_a + torch.log(a / system.a)
    return replace(reduction, system=replace(system, a=a, b=b, c=c, d=own.d, log_a=log_a))


def _diagonal(a: Tensor, restrict: ConjugateLinear, embed: ConjugateLinear) -> Tensor:
    """The diagonal of the linear part of restrict diag(a) embed."""
    linear = torch.einsum("...in,...n,...ni->...i", restrict.linear, a.to(restrict.linear.dtype), embed.linear)
    if restrict.conjugate is None or embed.conjugate is None:
        return linear
    conjugate = a.to(restrict.conjugate.dtype).conj()
    return linear + torch.einsum("...in,...n,...ni->...i", restrict.conjugate, conjugate, embed.conjugate.conj())


def _changes_feedthrough(full: StateSpace, reduced: StateSpace) -> bool:
    if full.d is None or reduced.d is None:
        return full.d is not reduced.d
    return not torch.equal(full.d, reduced.d)


def _shapes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]}
