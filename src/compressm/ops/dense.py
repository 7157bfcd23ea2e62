"""A recurrence with a dense real state matrix in blocks of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressm.ops.checks import check_dense
from compressm.ops.precision import working_dtype


def dense_lti(a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
    """y_k = C x_k with x_k = A x_{k-1} + B u_k, from x_{-1} = 0, all real.

    Inside a block of T steps the output is a block Toeplitz matrix of the Markov parameters C A^l B times the
    inputs; between blocks the state is carried by S' = A^T S + [A^{T-1} B .. B] u, and enters the outputs as
    [C A .. C A^T] S. T grows with sqrt(L) and falls with the width, where the Toeplitz matrix is what costs.

    Shapes: a (N, N); b (N, H_in); c (H_out, N); u (batch, L, H_in), any of them empty; returns (batch, L, H_out) in
    the dtype of `u`. The arithmetic is in float64 for a float64 input and in float32 otherwise, under autocast too.

    Raises InvalidSystemError where shapes do not fit together.
    """
    check_dense(a, b, c, u)
    dtype = working_dtype(u)
    with torch.autocast(device_type=u.device.type, enabled=False):
        return _blocked(a.to(dtype), b.to(dtype), c.to(dtype), u.to(dtype)).to(u.dtype)


def dense_block_length(length: int, width: int, order: int) -> int:
    """Steps in a block: about sqrt(L), but no longer than the Toeplitz product stays as cheap as the state's."""
    balanced = max(4, 4 * max(order, 1) // max(width, 1))
    return max(1, min(length, balanced, math.isqrt(max(length - 1, 0)) + 1))


def _blocked(a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
    batch, length, inputs = u.shape
    order, outputs = a.shape[0], c.shape[0]
    block = dense_block_length(length, max(inputs, outputs), order)
    blocks = -(-length // block)
    if batch == 0 or length == 0:
        return u.new_zeros(batch, length, outputs) + 0 * u.sum()
    padded = torch.nn.functional.pad(u, (0, 0, 0, blocks * block - length))
    rows = padded.reshape(batch, blocks, block * inputs)
    reach = _krylov(a, b, block)  # (T, N, H_in): A^t B
    observe = _krylov(a.mT, c.mT, block + 1).mT  # (T + 1, H_out, N): C A^t
    y = rows @ _toeplitz(c @ reach).mT
    drive = rows @ reach.flip(0).transpose(0, 1).reshape(order, block * inputs).mT
    advance = torch.linalg.matrix_power(a, block).mT
    state = drive.new_zeros(batch, order)
    starts = []
    for piece in drive.unbind(1):
        starts.append(state)
        state = state @ advance + piece
    y = y + torch.stack(starts, dim=1) @ observe[1:].reshape(block * outputs, order).mT
    return y.reshape(batch, blocks * block, outputs)[:, :length]


def _krylov(a: Tensor, b: Tensor, count: int) -> Tensor:
    """[B, A B, .., A^{count-1} B] as (count, N, H), by doubling."""
    order, width = b.shape
    columns, power = b, a
    while columns.shape[1] < count * width:
        columns = torch.cat([columns, power @ columns], dim=1)
        if columns.shape[1] < count * width:
            power = power @ power
    return columns[:, : count * width].reshape(order, count, width).transpose(0, 1)


def _toeplitz(markov: Tensor) -> Tensor:
    """The block lower triangular Toeplitz matrix (T H_out, T H_in) of h_0 .. h_{T-1} (T, H_out, H_in)."""
    block, outputs, inputs = markov.shape
    steps = torch.arange(block, device=markov.device)
    lag = steps[:, None] - steps[None, :]
    matrix = torch.where((lag >= 0)[..., None, None], markov[lag.clamp(min=0)], 0.0)  # (T, T, H_out, H_in)
    return matrix.transpose(1, 2).reshape(block * outputs, block * inputs)
