"""Diagonal recurrences: one signature, several forms."""

from __future__ import annotations

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.ops.checks import check_diagonal, check_state
from compressm.ops.chunked import diagonal_chunked
from compressm.ops.convolution import diagonal_convolution
from compressm.ops.cost import Form, Machine, choose_form
from compressm.ops.kernels import usable
from compressm.ops.lanes import diagonal_lanes
from compressm.ops.precision import precise, working_dtype
from compressm.ops.reference import diagonal_reference


def diagonal_lti(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    form: Form | None = None,
    *,
    feedthrough: Tensor | None = None,
) -> Tensor:
    """y_k = Re(C x_k) + D u_k with x_k = diag(exp(-nu + i theta)) x_{k-1} + B u_k, from x_{-1} = 0.

    Shapes: nu, theta (N,); b_re, b_im (N, H_in); c_re, c_im (H_out, N); u (batch, L, H_in), any of them empty;
    `feedthrough` (H_in,) is the diagonal of D where H_out = H_in, None for zero. Returns (batch, L, H_out) in the dtype
    of `u`; the arithmetic is in float64 for a float64 input and in float32 otherwise, under autocast too. `nu` (>= 0,
    infinite for a pole at zero) and `theta` may be given in float64 beside a float32 input: powers of the poles are
    then as accurate as these. `form` None lets `choose_form` decide.

    Raises InvalidSystemError where shapes do not fit together, or a form is asked for that cannot run.
    """
    check_diagonal(nu, theta, b_re, b_im, c_re, c_im, u, feedthrough)
    if form is not None and not isinstance(form, Form):
        raise InvalidSystemError(f"form is {form!r}; wanted a Form or None.")
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (nu, theta, b_re, b_im, c_re, c_im, u))
    with torch.autocast(device_type=u.device.type, enabled=False):
        dtype = working_dtype(u)
        b_re, b_im, c_re, c_im, v = (t.to(dtype) for t in (b_re, b_im, c_re, c_im, u))
        d = None if feedthrough is None else feedthrough.to(dtype)
        if form is None:
            sizes = u.shape[0], u.shape[1], b_re.shape[1], c_re.shape[0], nu.shape[0]
            form = choose_form(*sizes, training, Machine.of(v))
        if form is Form.CONVOLUTION:
            return diagonal_convolution(nu, theta, b_re, b_im, c_re, c_im, v, d).to(u.dtype)
        if form is Form.LANES:
            _check_lanes(v)
            return diagonal_lanes(nu, theta, b_re, b_im, c_re, c_im, v, d).to(u.dtype)
        if form is Form.CHUNKED:
            return diagonal_chunked(nu, theta, b_re, b_im, c_re, c_im, v, d).to(u.dtype)
        y = diagonal_reference(nu, theta, b_re, b_im, c_re, c_im, v)
        return (y if d is None else torch.addcmul(y, v, d)).to(u.dtype)


def diagonal_step(
    nu: Tensor,
    theta: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    u: Tensor,
    state: Tensor,
    *,
    feedthrough: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `diagonal_lti`: the output (batch, H_out) and the next state (batch, N, 2) for u (batch, H_in).

    The state holds real and imaginary parts; the arithmetic is in its dtype, the output in that of `u`. Raises
    InvalidSystemError where shapes do not fit together.
    """
    check_state(state, u, nu.shape[0] if isinstance(nu, Tensor) and nu.ndim == 1 else -1, 2)
    check_diagonal(nu, theta, b_re, b_im, c_re, c_im, u.unsqueeze(1), feedthrough)
    dtype = state.dtype
    v, b_re, b_im, c_re, c_im = (t.to(dtype) for t in (u, b_re, b_im, c_re, c_im))
    pole = torch.polar(torch.exp(-precise(nu)), precise(theta))
    pole_re, pole_im = pole.real.to(dtype), pole.imag.to(dtype)
    x_re, x_im = state.unbind(-1)
    next_re = pole_re * x_re - pole_im * x_im + v @ b_re.mT
    next_im = pole_re * x_im + pole_im * x_re + v @ b_im.mT
    y = next_re @ c_re.mT - next_im @ c_im.mT
    y = y if feedthrough is None else y + feedthrough.to(dtype) * v
    return y.to(u.dtype), torch.stack([next_re, next_im], dim=-1)


def _check_lanes(u: Tensor) -> None:
    if not usable(u.device, u.dtype):
        raise InvalidSystemError(
            f"Form.LANES is for float32 on the CPU with compiled kernels; found {u.dtype} on {u.device}. Leave the "
            f"form to the library, or install the kernels: pip install compressm[fast]."
        )
