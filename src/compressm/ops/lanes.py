"""A diagonal recurrence in one compiled pass for 16 sequences at a time; narrow layers with batches gain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressm.ops.derivative import written_out
from compressm.ops.precision import nothing, precise

LANES = 16  # sequences that a kernel takes at once
_BLOCK_FLOATS = 24 << 10  # states and their gradients in one block stay in a core's nearest caches
_SHORTEST, _LONGEST = 8, 64


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
        y = nothing(nu, theta, b_re, b_im, c_re, c_im, u, shape=(batch, u.shape[1], c_re.shape[0]))
        return y if feedthrough is None else y + u * feedthrough
    if batch < LANES:
        padded = functional.pad(u, (0, 0, 0, 0, 0, LANES - batch))
        return diagonal_lanes(nu, theta, b_re, b_im, c_re, c_im, padded, feedthrough)[:batch]
    y = _Lanes.apply(nu, theta, b_re, b_im, c_re, c_im, feedthrough, u.permute(2, 1, 0))
    return y.permute(2, 1, 0)


class _Lanes(torch.autograd.Function):
    """y (O, L, batch) for u (H, L, batch)."""

    @staticmethod
    def forward(
        ctx: Any,
        nu: Tensor,
        theta: Tensor,
        b_re: Tensor,
        b_im: Tensor,
        c_re: Tensor,
        c_im: Tensor,
        d: Tensor | None,
        u: Tensor,
    ) -> Tensor:
        from compressm.ops.kernels import lanes as compiled
        from compressm.ops.kernels import parameters

        u = u.contiguous()
        (inputs, length, batch), outputs = u.shape, c_re.shape[0]
        fitting = _BLOCK_FLOATS // (8 * LANES * nu.shape[0]) * 2  # even, as the kernels want it
        block = min(length + length % 2, max(_SHORTEST, min(_LONGEST, fitting)))
        poles, exact, b, c = parameters.packed(precise(nu), precise(theta), (b_re, b_im, c_re, c_im), block)
        groups, order, width, high = -(-batch // LANES), b.shape[0], b.shape[2], c.shape[2]
        y = u.new_empty(outputs, length, batch)
        starts = u.new_empty(groups, -(-length // block), order, 2, LANES)
        sizes = length, inputs, outputs, order, batch, block, width, high
        x, signal = u.new_empty(groups, block + 1, order, 2, LANES), u.new_zeros(groups, block, width + high, LANES)
        feed = 0 if d is None else d.contiguous()
        compiled.forward(groups, u, y, starts, x, signal, *poles, b, c, feed, *sizes)
        ctx.save_for_backward(exact, poles, b, c, d, u, starts)
        ctx.sizes, ctx.kinds = sizes, (nu.dtype, theta.dtype)
        return y

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from compressm.ops.kernels import lanes as compiled
        from compressm.ops.kernels import parameters

        exact, poles, b, c, d, u, starts = ctx.saved_tensors
        _, inputs, outputs, order, batch, block, width, high = ctx.sizes
        groups = starts.shape[0]
        grad_u = torch.empty_like(u)
        x, gx = u.new_empty(groups, block + 1, order, 2, LANES), u.new_empty(groups, block, order, 2, LANES)
        signal, ahead = u.new_zeros(groups, block, 2 * width + high, LANES), u.new_zeros(groups, order, 2, LANES)
        sums = u.new_zeros(groups, 2 * order * (1 + width + high) + outputs, LANES)
        feed = 0 if d is None else d.contiguous()
        working = starts, x, gx, signal, ahead, sums
        compiled.backward(groups, u, grad.contiguous(), grad_u, *working, *poles, b, c, feed, *ctx.sizes)
        shared = groups * LANES - batch  # sequences that the last group has in common with the one before
        by_nu, by_theta, *rest, by_d = parameters.gradients(sums, exact, shared, inputs, outputs)
        return by_nu.to(ctx.kinds[0]), by_theta.to(ctx.kinds[1]), *rest, None if d is None else by_d, grad_u
