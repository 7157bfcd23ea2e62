"""The linear state space layer LSSL of Gu et al. 2021: one dense state matrix for all channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compressm.layers.bank import BankLayer
from compressm.layers.base import check_size
from compressm.layers.hippo import check_steps, legs, log_uniform
from compressm.layers.systems import DenseBank
from compressm.ops.bank import bank_convolution
from compressm.ops.dense_bank import dense_bank_response
from compressm.ops.precision import precise, working_dtype


class LSSL(BankLayer):
    """A bank of H systems with one real state matrix and a step for each channel (arXiv 2110.13985, section 3).

    x' = A x + B u for all channels, sampled with the steps d_h = exp(log_dt_h) by the trapezoidal rule,
    Ad_h = (I - d_h/2 A)^{-1} (I + d_h/2 A), Bd_h = (I - d_h/2 A)^{-1} d_h B; x_k = Ad_h x_{k-1} + Bd_h u_k and
    y_k = C_h x_k + D_h u_k.

    A = (skew - skew^T) / 2 - diag(exp(log_decay)). Every stable system has this form in some states (Lyapunov), and
    every value of the parameters is stable: A + A^T is negative definite, and no Ad_h lengthens a vector.

    Parameters: skew (N, N), log_decay (N,), B (N,), C (H, N), log_dt, D (H,). At the start A and B are HiPPO-LegS in
    reflected states, steps are log-uniform on [dt_min, dt_max], C is N(0, 1 / N), and D is N(0, 1).

    Raises ConfigError for a width below 1, a negative order, or steps that are not 0 < dt_min <= dt_max.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("LSSL", width, order, generator)
        check_steps("LSSL", dt_min, dt_max)
        a, b = reflected_legs(order)
        self.skew = nn.Parameter(((a - a.mT) / 2).float())
        self.log_decay = nn.Parameter(torch.log(-a.diagonal()).float())
        self.B = nn.Parameter(b.float())
        self.log_dt = nn.Parameter(log_uniform(dt_min, dt_max, (width,), generator))
        self.C = nn.Parameter(torch.randn(width, order, generator=generator) / math.sqrt(max(order, 1)))
        self.D = nn.Parameter(torch.randn(width, generator=generator))

    @property
    def order(self) -> int:
        """The number N of real states of each channel."""
        return self.B.shape[0]

    def respond(self, u: Tensor) -> Tensor:
        """The output (batch, L, H) for an input without padding."""
        with torch.autocast(device_type=u.device.type, enabled=False):
            dtype = working_dtype(u)
            a, b = self.sampled()
            kernel = dense_bank_response(a, b.to(dtype), self.C.to(dtype), u.shape[1])
            return bank_convolution(u.to(dtype), kernel, self.D).to(u.dtype)

    def system(self) -> DenseBank:
        return DenseBank(*self.sampled(), self.C, self.D)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, H, N), in float32 or wider."""
        dtype = torch.promote_types(self.B.dtype, torch.float32)
        return torch.zeros(batch, self.width, self.order, dtype=dtype, device=self.B.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, H, N) for one input u (batch, H)."""
        dtype = state.dtype
        a, b = (t.to(dtype) for t in self.sampled())
        v = u.to(dtype)
        x = (a @ state.unsqueeze(-1)).squeeze(-1) + b * v.unsqueeze(-1)
        y = (self.C.to(dtype) * x).sum(-1) + self.D.to(dtype) * v
        return y.to(u.dtype), x

    def sampled(self) -> tuple[Tensor, Tensor]:
        """The discrete systems in float64: Ad (H, N, N), Bd (H, N)."""
        a = dissipative_matrix(precise(self.skew), precise(self.log_decay))
        return sample_bilinear(a, precise(self.B), precise(self.log_dt).exp())


def dissipative_matrix(skew: Tensor, log_decay: Tensor) -> Tensor:
    """(skew - skew^T) / 2 - diag(exp(log_decay)) for skew (N, N) and log_decay (N,)."""
    return (skew - skew.mT) / 2 - torch.diag(log_decay.exp())


def sample_bilinear(a: Tensor, b: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(I - d/2 A)^{-1} (I + d/2 A) (H, N, N) and (I - d/2 A)^{-1} d b (H, N) for steps d (H,), a (N, N), b (N,)."""
    eye = torch.eye(len(b), dtype=a.dtype, device=a.device)
    inverse = torch.linalg.inv(eye - step[:, None, None] / 2 * a)
    return 2 * inverse - eye, (inverse @ b) * step[:, None]


def reflected_legs(order: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of HiPPO-LegS after the reflection that takes B to -N times the first unit vector; float64.

    A + A^T = -I - B B^T for LegS, so that after the reflection it is diagonal.
    """
    a, b, _ = legs(order)
    normal = b.clone()
    normal[:1] += order  # the length of b
    reflection = torch.eye(order, dtype=a.dtype) - 2 * torch.outer(normal, normal) / normal.square().sum()
    return reflection @ a @ reflection, reflection @ b
