"""Banks of single-input single-output systems: each channel has a diagonal recurrence of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compressm.errors import InvalidSystemError
from compressm.ops.bank_blocks import bank_blocked, blocks_are_faster
from compressm.ops.bank_response import bank_response
from compressm.ops.checks import require_tensors
from compressm.ops.convolution import good_size
from compressm.ops.derivative import written_out
from compressm.ops.precision import complex_dtype, nothing, precise, working_dtype

_GROUP_BYTES = 1 << 21  # one group's signals: its transforms fit a core's second-level cache


def bank_lti(
    nu: Tensor,
    theta: Tensor,
    w_re: Tensor,
    w_im: Tensor,
    u: Tensor,
    *,
    feedthrough: Tensor | None = None,
    in_blocks: bool | None = None,
) -> Tensor:
    """In each channel y_k = Re(sum_n w_n x_kn) + D u_k, with x_kn = exp(-nu_n + i theta_n) x_{k-1,n} + u_k.

    Channel h is a convolution with its own kernel Re(sum_n w[h, n] lambda[h, n]^l): input and output weights of a
    single-input single-output system matter by their products w only.

    Shapes: nu, theta, w_re, w_im (H, N); u (batch, L, H); feedthrough (H,); returns (batch, L, H) in the dtype of
    `u`; the arithmetic is in float64 for a float64 input and in float32 otherwise, under autocast too. Channel-first
    memory costs no copies. `nu` may be infinite for a pole at zero. Runs in blocks of
    time or, if not `in_blocks`, as a convolution; None lets the sizes decide.

    Raises InvalidSystemError where shapes do not fit together.
    """
    _check(nu, theta, w_re, w_im, u, feedthrough)
    with torch.autocast(device_type=u.device.type, enabled=False):
        dtype = working_dtype(u)
        w_re, w_im, v = w_re.to(dtype), w_im.to(dtype), u.to(dtype)
        if blocks_are_faster(u.shape[0], u.shape[1], nu.shape[1]) if in_blocks is None else in_blocks:
            y = bank_blocked(nu, theta, w_re, w_im, v)
            return (y if feedthrough is None else torch.addcmul(y, v, feedthrough.to(dtype))).to(u.dtype)
        kernel = bank_response(nu, theta, w_re, w_im, u.shape[1])
        return bank_convolution(v, kernel, feedthrough).to(u.dtype)


def bank_step(
    nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, u: Tensor, state: Tensor, *, feedthrough: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of `bank_lti`: the output (batch, H) and the next state (batch, H, N, 2) for u (batch, H)."""
    require_tensors(u=u, state=state)
    require_tensors(D=feedthrough)
    _check(nu, theta, w_re, w_im, u.unsqueeze(1), feedthrough)
    if tuple(state.shape) != (*u.shape, nu.shape[1], 2):
        raise InvalidSystemError(f"The state is {tuple(state.shape)}; wanted {(*u.shape, nu.shape[1], 2)}.")
    dtype = state.dtype
    pole = torch.polar(torch.exp(-precise(nu)), precise(theta))
    pole_re, pole_im, v = pole.real.to(dtype), pole.imag.to(dtype), u.to(dtype)
    x_re, x_im = state.unbind(-1)
    next_re = pole_re * x_re - pole_im * x_im + v.unsqueeze(-1)
    next_im = pole_re * x_im + pole_im * x_re
    y = (next_re * w_re.to(dtype) - next_im * w_im.to(dtype)).sum(-1) + feedthrough.to(dtype) * v
    return y.to(u.dtype), torch.stack([next_re, next_im], dim=-1)


def bank_reference(nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, u: Tensor) -> Tensor:
    """`bank_lti` step by step: the oracle."""
    _check(nu, theta, w_re, w_im, u, None)
    pole = torch.polar(torch.exp(-precise(nu)), precise(theta)).to(complex_dtype(w_re.dtype))
    w = torch.complex(w_re, w_im)
    x = w.new_zeros(u.shape[0], *w.shape)
    outputs = []
    for k in range(u.shape[1]):
        x = pole * x + u[:, k, :, None]
        outputs.append((x * w).sum(-1).real)
    return torch.stack(outputs, dim=1) if outputs else u + w_re.sum()


def bank_convolution(u: Tensor, kernel: Tensor, feedthrough: Tensor | None = None) -> Tensor:
    """y_k[h] = sum_{l <= k} K[h, l] u_{k-l}[h] + D[h] u_k[h] for u (batch, L, H) and kernels K (H, L)."""
    if feedthrough is not None and kernel.shape[1] > 0:
        start = kernel[:, :1] + feedthrough.to(kernel.dtype)[:, None]
        kernel = torch.cat([start, kernel[:, 1:]], dim=1)
    if u.numel() == 0:
        return nothing(kernel, feedthrough, u, shape=tuple(u.shape))
    y: Tensor = _BankConvolution.apply(u.permute(2, 0, 1), kernel)
    return y.permute(1, 2, 0)


class _BankConvolution(torch.autograd.Function):
    """y[h, b] = K[h] * u[h, b], linear convolutions cut to the first L samples.

    A few channels at a time, whose transforms stay in cache; the backward pass takes them again, which costs less
    than writing them to memory and reading them back.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        size = good_size(2 * u.shape[-1] - 1)
        response, padded = torch.fft.rfft(kernel, n=size), _room(u, size)
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        for part in _groups(u, size):
            spectrum = _transform(u[part], padded).mul_(response[part, None])
            y[part] = torch.fft.irfft(spectrum, n=size)[..., : u.shape[-1]]
        ctx.save_for_backward(u, response)
        ctx.size = size
        return y

    @staticmethod
    @written_out
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        u, response = ctx.saved_tensors
        size, length = ctx.size, u.shape[-1]
        wants_u, wants_kernel = ctx.needs_input_grad
        grad_u = torch.empty(u.shape, dtype=u.dtype, device=u.device) if wants_u else None
        grad_kernel = u.new_empty(u.shape[0], length) if wants_kernel else None
        response, padded = response.conj_physical(), _room(u, size)
        for part in _groups(u, size):
            ahead = _transform(grad[part], padded)
            if grad_kernel is not None:
                correlation = _transform(u[part], padded).conj_physical_().mul_(ahead).sum(1)
                grad_kernel[part] = torch.fft.irfft(correlation, n=size)[:, :length]
            if grad_u is not None:
                grad_u[part] = torch.fft.irfft(ahead.mul_(response[part, None]), n=size)[..., :length]
        return grad_u, grad_kernel


def _groups(u: Tensor, size: int) -> Iterator[slice]:
    """Channels of u (H, batch, L) a few at a time."""
    channels = _channels(u, size)
    return (slice(start, start + channels) for start in range(0, u.shape[0], channels))


def _channels(u: Tensor, size: int) -> int:
    """How many channels of u (H, batch, L) are taken at a time."""
    return min(u.shape[0], max(1, _GROUP_BYTES // max(1, u.shape[1] * size * u.element_size())))


def _room(u: Tensor, size: int) -> Tensor:
    """Room for one group's signals with zeros behind them, which every group uses again."""
    room = u.new_empty(_channels(u, size), u.shape[1], size)
    room[..., u.shape[-1] :] = 0
    return room


def _transform(signals: Tensor, room: Tensor) -> Tensor:
    """The transform of signals (channels, batch, L) with zeros behind them."""
    padded = room[: len(signals)]
    padded[..., : signals.shape[-1]] = signals
    return torch.fft.rfft(padded)


def _check(nu: Tensor, theta: Tensor, w_re: Tensor, w_im: Tensor, u: Tensor, feedthrough: Tensor | None) -> None:
    require_tensors(nu=nu, theta=theta, w_re=w_re, w_im=w_im, u=u, feedthrough=feedthrough)
    fits = nu.ndim == 2 and theta.shape == w_re.shape == w_im.shape == nu.shape and u.ndim == 3
    if not fits or u.shape[2:] != nu.shape[:1] or (feedthrough is not None and feedthrough.shape != nu.shape[:1]):
        named = {"nu": nu, "theta": theta, "w_re": w_re, "w_im": w_im, "u": u}
        found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in named.items())
        found += "" if feedthrough is None else f", feedthrough {tuple(feedthrough.shape)}"
        raise InvalidSystemError(
            f"Wanted nu, theta, w_re, w_im (H, N), u (batch, L, H) and feedthrough (H,); found {found}."
        )
