"""A diagonal recurrence in one compiled pass for 16 sequences at a time; narrow layers with batches gain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compressm.ops.precision import precise
from compressm.ops.recurrence import rounded_poles

LANES = 16  # sequences that a kernel takes at once
_BLOCK_FLOATS = 1 << 16  # states and their gradients in one block stay in a core's second-level cache
_LONGEST = 64


def diagonal_lanes(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    feedthrough: Tensor | None = None,
) -> Tensor:
    """`diagonal_reference` for float32 on the CPU, by compiled kernels; same shapes.

    Sequences lie side by side in memory: `u.permute(2, 1, 0)` contiguous costs no copy, and so it is for the result.
    Batches below 16 are padded. Memory beside input and output: the states at block boundaries.
    """
    batch = u.shape[0]
    if u.numel() == 0 or c_re.shape[0] == 0 or nu.shape[0] == 0:
        y = u[..., :0].sum() + u.new_zeros(batch, u.shape[1], c_re.shape[0])
        return y if feedthrough is None else y + u * feedthrough
    if batch < LANES:
        padded = torch.nn.functional.pad(u, (0, 0, 0, 0, 0, LANES - batch))
        return diagonal_lanes(nu, theta, b_re, b_im, c_re, c_im, padded, feedthrough)[:batch]
    b, c = torch.stack([b_re, b_im], -1), torch.stack([c_re.mT, -c_im.mT], -1)
    if nu.shape[0] % 2:  # kernels take states in pairs
        b, c = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1)) for x in (b, c))
        nu, theta = (torch.nn.functional.pad(x, (0, 1)) for x in (nu, theta))
    y = _Lanes.apply(nu, theta, b, c, feedthrough, u.permute(2, 1, 0))
    return y.permute(2, 1, 0)


class _Lanes(torch.autograd.Function):
    """y (O, L, batch) for u (H, L, batch), b (N, H, 2), c (N, O, 2), d (O,) or None, and N even."""

    @staticmethod
    def forward(ctx: Any, nu: Tensor, theta: Tensor, b: Tensor, c: Tensor, d: Tensor | None, u: Tensor) -> Tensor:
        from compressm.ops.kernels import lanes as compiled

        b, c, u = b.contiguous(), c.contiguous(), u.contiguous()
        (inputs, length, batch), order, outputs = u.shape, b.shape[0], c.shape[1]
        block = max(1, min(_LONGEST, length, _BLOCK_FLOATS // (4 * LANES * order)))
        groups = -(-batch // LANES)
        pole, defect = rounded_poles(precise(nu), precise(theta), block)
        y = u.new_empty(outputs, length, batch)
        starts = u.new_empty(groups, -(-length // block), order, 2, LANES)
        sizes = length, inputs, outputs, order, batch, block
        working = u.new_empty(groups, order, 2, LANES), u.new_empty(groups, inputs + outputs, LANES)
        feed = 0 if d is None else d.contiguous()
        compiled.forward(groups, u, y, starts, *working, pole, defect, b, c, feed, *sizes)
        ctx.save_for_backward(nu, theta, b, c, d, u, starts, pole, defect)
        ctx.sizes = sizes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import lanes as compiled

        nu, theta, b, c, d, u, starts, pole, defect = ctx.saved_tensors
        _, inputs, outputs, order, batch, block = ctx.sizes
        groups = starts.shape[0]
        grad = grad.contiguous()
        grad_u = torch.empty_like(u)
        x = u.new_empty(groups, block + 1, order, 2, LANES)
        gx = u.new_empty(groups, block, order, 2, LANES)
        signal = u.new_empty(groups, block, 2 * inputs + outputs, LANES)
        ahead, sums = u.new_zeros(2, groups, order, 2, LANES)
        sum_b, sum_c = (u.new_zeros(groups, order, width, 2, LANES) for width in (inputs, outputs))
        sum_d = u.new_zeros(groups, outputs, LANES)
        feed = 0 if d is None else d.contiguous()
        working = starts, x, gx, signal, ahead, sums, sum_b, sum_c, sum_d
        compiled.backward(groups, u, grad, grad_u, *working, pole, defect, b, c, feed, *ctx.sizes)
        own = _own_sequences(groups, batch)
        by_pole, grad_b, grad_c, grad_d = (torch.einsum("g...l,gl->...", s, own) for s in (sums, sum_b, sum_c, sum_d))
        exact = torch.polar(torch.exp(-precise(nu)), precise(theta))
        product = torch.view_as_complex(by_pole) * exact.conj()
        return (
            -product.real.to(nu.dtype),
            product.imag.to(theta.dtype),
            grad_b,
            grad_c,
            None if d is None else grad_d,
            grad_u,
        )


def _own_sequences(groups: int, batch: int) -> Tensor:
    """(groups, 16): 1 for the sequences that no earlier group has, 0 for those that the last group shares."""
    own = torch.ones(groups, LANES)
    own[-1, : groups * LANES - batch] = 0
    return own
