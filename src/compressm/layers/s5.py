"""The simplified state space layer S5 of Smith, Warrington and Linderman 2023."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compressm.layers.base import check_size, member
from compressm.layers.diagonal import DiagonalLayer
from compressm.layers.hippo import DiagonalInit, check_steps, initial_poles, log_uniform, normal_legs
from compressm.layers.systems import DiagonalSystem
from compressm.ops.precision import precise
from compressm.ops.sampling import Sampled, Sampling, sample


class S5(DiagonalLayer):
    """One diagonal system with H inputs and outputs, sampled with a step per state (arXiv 2208.04933, eqs. 5 to 7).

    x' = diag(s) x + B u with s = -exp(log_A_real) + i A_imag, sampled with the steps exp(log_step) by `discretization`
    into poles lambda and input gains g; x_k = lambda x_{k-1} + g B u_k and y_k = 2 Re(C x_k) + D u_k. Only one of each
    conjugate pair is stored. Stable for every value of the parameters. The layer for both directions of time is
    `Bidirectional(S5(...), S5(...))`, whose two systems share no poles.

    Parameters, all real: log_A_real, A_imag, log_step (N,); B_re, B_im (N, H); C_re, C_im (H, N); D (H,).
    At the start the poles are those of `init`, for LEGS with B and C taken to the eigenvectors of the normal part of
    HiPPO-LegS from real matrices of variances 1 / H and 1 / 2N (section 3.3, one block); steps are log-uniform on
    [dt_min, dt_max]; D is N(0, 1).

    Raises ConfigError for a width below 1, a negative order, or steps that are not 0 < dt_min <= dt_max.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        init: DiagonalInit | str = DiagonalInit.LEGS,
        discretization: Sampling | str = Sampling.ZOH,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("S5", width, order, generator)
        check_steps("S5", dt_min, dt_max)
        init = member(DiagonalInit, init, "S5: init")
        self.discretization = member(Sampling, discretization, "S5: discretization")
        decay, frequency = initial_poles(init, order)
        basis = normal_legs(order)[1] if init is DiagonalInit.LEGS else _unitary(order, generator)
        b = torch.randn(2 * order, width, generator=generator, dtype=torch.float64) / math.sqrt(width)
        c = torch.randn(width, 2 * order, generator=generator, dtype=torch.float64) / math.sqrt(max(2 * order, 1))
        b, c = basis.mH @ b.to(basis.dtype), c.to(basis.dtype) @ basis
        self.log_A_real = nn.Parameter(torch.log(decay).float())
        self.A_imag = nn.Parameter(frequency.float())
        self.log_step = nn.Parameter(log_uniform(dt_min, dt_max, (order,), generator))
        self.B_re, self.B_im = nn.Parameter(b.real.float()), nn.Parameter(b.imag.float())
        self.C_re, self.C_im = nn.Parameter(c.real.float()), nn.Parameter(c.imag.float())
        self.D = nn.Parameter(torch.randn(width, generator=generator))

    @property
    def order(self) -> int:
        """The number N of complex states, each of which stands for a conjugate pair."""
        return self.A_imag.shape[0]

    def sampled(self) -> Sampled:
        """The discrete poles and input gains (N,)."""
        decay, step = precise(self.log_A_real).exp(), precise(self.log_step).exp()
        return sample(decay, self.A_imag, step, self.discretization)

    def system(self) -> DiagonalSystem:
        """The layer as it acts, sampled, with the factor 2 of conjugate pairs in C."""
        nu, theta, gain_re, gain_im = self.sampled()
        dtype = torch.promote_types(self.B_re.dtype, torch.float32)
        gain_re, gain_im = gain_re.to(dtype)[:, None], gain_im.to(dtype)[:, None]
        b_re = gain_re * self.B_re - gain_im * self.B_im
        b_im = gain_re * self.B_im + gain_im * self.B_re
        return DiagonalSystem(nu, theta, b_re, b_im, 2 * self.C_re, 2 * self.C_im, self.D)


def _unitary(order: int, generator: torch.Generator | None) -> Tensor:
    """Random orthonormal complex columns (2 N, N)."""
    parts = torch.randn(2, 2 * order, order, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(torch.complex(parts[0], parts[1])).Q
