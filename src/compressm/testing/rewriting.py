"""One system in other states: the same input-output map, nothing removed."""

from __future__ import annotations

from dataclasses import replace

import torch

from compressm.adapters.base import Form
from compressm.linalg.forms import similarity
from compressm.linalg.modal import modal_basis
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import ConjugateLinear, GramianSource, Reduction


def rewrite(system: StateSpace, form: Form, *, shared: bool = False) -> Reduction:
    """The whole system in reversed and rescaled states (DIAGONAL), a rotated basis (DENSE, SHARED), or as it is.

    A dense system of a layer that is diagonal once it is cut is taken to its eigenvectors.
    `shared`: all systems of a bank have one keep-set.
    """
    n, h, white = system.order, system.batch_shape, GramianSource.WHITE
    if form is Form.SELECTION:
        eye = torch.eye(n, dtype=torch.complex128).expand(*h, n, n)
        keep = torch.arange(n) if shared else torch.arange(n).expand(*h, n).clone()
        maps = ConjugateLinear(eye), ConjugateLinear(eye.clone())
        return Reduction(system, _real_order(system), *maps, keep, 1.0, white, white)
    generator = torch.Generator().manual_seed(0)
    if form in (Form.DENSE, Form.SHARED):
        transform = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        transform = transform.expand(*h, n, n) if form is Form.DENSE else transform
        maps = ConjugateLinear(transform.mT.contiguous()), ConjugateLinear(transform)
        return Reduction(similarity(system, transform), n, *maps, None, 1.0, white, white)
    if not system.is_diagonal:
        basis = modal_basis(system.a, merge_pairs=False)
        b, c = basis.left @ system.b.to(basis.left.dtype), system.c.to(basis.right.dtype) @ basis.right
        maps = ConjugateLinear(basis.left), ConjugateLinear(basis.right)
        return Reduction(replace(system, a=basis.poles, b=b, c=c), _real_order(system), *maps, None, 1.0, white, white)
    order = torch.arange(n).flip(0)
    scale = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64) / 4)
    eye = torch.eye(n, dtype=torch.complex128)[order].expand(*h, n, n)
    moved = replace(
        system,
        a=system.a[..., order],
        b=system.b[..., order, :] * scale.unsqueeze(-1),
        c=system.c[..., order] / scale,
        log_a=None if system.log_a is None else system.log_a[..., order],
    )
    maps = ConjugateLinear(eye * scale.unsqueeze(-1)), ConjugateLinear(eye.mT / scale)
    return Reduction(moved, _real_order(system), *maps, None, 1.0, white, white)


def _real_order(system: StateSpace) -> int:
    return system.order * (2 if system.is_complex and system.output == "real" else 1)
