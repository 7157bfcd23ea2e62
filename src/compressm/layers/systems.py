"""Linear systems as layers act: everything that a layer computes from its parameters is folded in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DiagonalSystem:
    """x_k = l x_{k-1} + (b_re + i b_im) u_k and y_k = Re((c_re + i c_im) x_k) + d u_k, with l = exp(-nu + i theta).

    nu, theta (N,); b_re, b_im (N, H); c_re, c_im (H, N); d (H,). The state is (batch, N, 2): real and
    imaginary parts.
    """

    nu: Tensor
    theta: Tensor
    b_re: Tensor
    b_im: Tensor
    c_re: Tensor
    c_im: Tensor
    d: Tensor


@dataclass(frozen=True)
class DenseSystem:
    """x_k = a x_{k-1} + b u_k and y_k = c x_k + d u_k with real a (N, N), b (N, H), c (H, N), d (H, H).

    The state is (batch, N).
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor


@dataclass(frozen=True)
class DiagonalBank:
    """x_k = l x_{k-1} + u_k and y_k = Re(sum_n w x_k) + d u_k in each channel, with w = w_re + i w_im.

    l = exp(-nu + i theta); nu, theta, w_re, w_im (H, N); d (H,). The state is (batch, H, N, 2): real and imaginary
    parts.
    """

    nu: Tensor
    theta: Tensor
    w_re: Tensor
    w_im: Tensor
    d: Tensor


@dataclass(frozen=True)
class DenseBank:
    """x_k = a x_{k-1} + b u_k and y_k = Re(c x_k) + d u_k in each channel.

    a (H, N, N), b, c (H, N), all real or all complex; d (H,). The state is (batch, H, N), or (batch, H, N, 2) for
    complex a: real and imaginary parts.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor


LinearSystem = DiagonalSystem | DenseSystem | DiagonalBank | DenseBank
