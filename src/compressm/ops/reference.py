"""The recurrences step by step: slow, plain, and the oracle of every other form."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.ops.checks import check_dense, check_diagonal
from compressm.ops.precision import complex_dtype, nothing, precise


def diagonal_reference(
    nu: Tensor, theta: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, u: Tensor
) -> Tensor:
    """y_k = Re(C x_k) with x_k = exp(-nu + i theta) x_{k-1} + B u_k from x_{-1} = 0.

    Shapes: nu, theta (N,); b_re, b_im (N, H_in); c_re, c_im (H_out, N); u (batch, L, H_in); returns (batch, L, H_out).
    """
    check_diagonal(nu, theta, b_re, b_im, c_re, c_im, u)
    pole = torch.polar(torch.exp(-precise(nu)), precise(theta)).to(complex_dtype(b_re.dtype))
    b, c = torch.complex(b_re, b_im), torch.complex(c_re, c_im)
    drive = u.to(b.dtype) @ b.mT
    x = drive.new_zeros(u.shape[0], nu.shape[0])
    outputs = []
    for k in range(u.shape[1]):
        x = pole * x + drive[:, k]
        outputs.append((x @ c.mT).real)
    return (
        torch.stack(outputs, dim=1)
        if outputs
        else nothing(nu, theta, b_re, b_im, c_re, c_im, u, shape=(u.shape[0], 0, c_re.shape[0]))
    )


def dense_reference(a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
    """y_k = C x_k with x_k = A x_{k-1} + B u_k from x_{-1} = 0, all real.

    Shapes: a (N, N); b (N, H_in); c (H_out, N); u (batch, L, H_in); returns (batch, L, H_out).
    """
    check_dense(a, b, c, u)
    drive = u @ b.mT
    x = drive.new_zeros(u.shape[0], a.shape[0])
    outputs = []
    for k in range(u.shape[1]):
        x = x @ a.mT + drive[:, k]
        outputs.append(x @ c.mT)
    return torch.stack(outputs, dim=1) if outputs else nothing(a, b, c, u, shape=(u.shape[0], 0, c.shape[0]))
