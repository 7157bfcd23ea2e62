"""A recurrence with a dense real state matrix in blocks of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressm.ops.checks import check_dense
from compressm.ops.precision import nothing, working_dtype
from compressm.ops.scan import matrix_scan


def dense_lti(a: Tensor, b: Tensor, c: Tensor, u: Tensor, *, feedthrough: Tensor | None = None) -> Tensor:
    """y_k = C x_k + D u_k with x_k = A x_{k-1} + B u_k, from x_{-1} = 0, all real.

    Inside a block of T steps the output is a block Toeplitz matrix of the Markov parameters C A^l B times the
    inputs; between blocks the state is carried by S' = A^T S + [A^{T-1} B .. B] u, and enters the outputs as
    [C A .. C A^T] S, all blocks in a logarithm of their number (`matrix_scan`).

    Shapes: a (N, N); b (N, H_in); c (H_out, N); u (batch, L, H_in), any of them empty; feedthrough D
    (H_out, H_in), None for zero; returns (batch, L, H_out) in the dtype of `u`. The arithmetic is in float64 for a
    float64 input and in float32 otherwise, under autocast too.

    Raises InvalidSystemError where shapes do not fit together.
    """
    check_dense(a, b, c, u, feedthrough)
    dtype = working_dtype(u)
    with torch.autocast(device_type=u.device.type, enabled=False):
        d = None if feedthrough is None else feedthrough.to(dtype)
        return _blocked(a.to(dtype), b.to(dtype), c.to(dtype), d, u.to(dtype)).to(u.dtype)


def dense_block_length(length: int, width: int, order: int) -> int:
    """Steps T in a block, a power of two or the whole `length`: 2 N / H, where the products of a step, T H^2 within
    blocks and 2 N^2 / T between them, are about equal; at most about sqrt(L).
    """
    balanced = max(1, 2 * order // max(width, 1))
    longest = 1 << max(0, math.isqrt(max(length - 1, 0))).bit_length()
    return max(1, min(length, 1 << (balanced.bit_length() - 1), longest))


def _blocked(a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, u: Tensor) -> Tensor:
    batch, length, inputs = u.shape
    order, outputs = a.shape[0], c.shape[0]
    if batch == 0 or length == 0:
        return nothing(a, b, c, d, u, shape=(batch, length, outputs))
    block = dense_block_length(length, max(inputs, outputs), order)
    blocks = -(-length // block)
    padded = torch.nn.functional.pad(u, (0, 0, 0, blocks * block - length))
    rows = padded.reshape(batch, blocks, block * inputs)
    powers = [a]  # A, A^2, A^4, .., A^T; beyond A^T where T is the whole length, and no state is carried
    while 1 << (len(powers) - 1) < block:
        powers.append(powers[-1] @ powers[-1])
    reach = _krylov(powers, b, block)  # (T, N, H_in): A^t B
    observe = _krylov([power.mT for power in powers], (c @ a).mT, block).mT  # (T, H_out, N): C A^(t + 1)
    response = c @ reach
    response = response if d is None else torch.cat([response[:1] + d, response[1:]])
    y = rows @ _toeplitz(response).mT
    drive = rows @ reach.flip(0).transpose(0, 1).reshape(order, block * inputs).mT
    starts = matrix_scan(drive, powers[-1])
    y = torch.addmm(y.flatten(0, 1), starts.flatten(0, 1), observe.reshape(block * outputs, order).mT)
    return y.view(batch, blocks * block, outputs)[:, :length]


def _krylov(powers: list[Tensor], b: Tensor, count: int) -> Tensor:
    """[B, A B, .., A^{count-1} B] as (count, N, H), by doubling, from A, A^2, A^4, .."""
    order, width = b.shape
    columns = b
    for power in powers:
        if columns.shape[1] >= count * width:
            break
        columns = torch.cat([columns, power @ columns], dim=1)
    return columns[:, : count * width].reshape(order, count, width).transpose(0, 1)


def _toeplitz(markov: Tensor) -> Tensor:
    """The block lower triangular Toeplitz matrix (T H_out, T H_in) of h_0 .. h_{T-1} (T, H_out, H_in)."""
    block, outputs, inputs = markov.shape
    steps = torch.arange(block, device=markov.device)
    lag = steps[:, None] - steps[None, :]
    matrix = torch.where((lag >= 0)[..., None, None], markov[lag.clamp(min=0)], 0.0)  # (T, T, H_out, H_in)
    return matrix.transpose(1, 2).reshape(block * outputs, block * inputs)
