"""The diagonal state space layer S4D of Gu, Gupta, Goel and Ré 2022."""

from __future__ import annotations

import torch
from torch import nn

from compressm.layers.bank import DiagonalBankLayer, sampled_bank
from compressm.layers.base import check_size, member
from compressm.layers.hippo import DiagonalInit, check_steps, initial_poles, log_uniform
from compressm.layers.systems import DiagonalBank
from compressm.ops.precision import precise
from compressm.ops.sampling import Sampled, Sampling, sample


class S4D(DiagonalBankLayer):
    """A bank of H diagonal single-input single-output systems, one for each channel (arXiv 2206.11893, section 3).

    For channel h: x' = diag(s_h) x + 1 u with s = -exp(log_A_real) + i A_imag, sampled with the step exp(log_dt_h) by
    `discretization` into poles lambda and input gains g; x_k = lambda x_{k-1} + g u_k and
    y_k = 2 Re(sum_n C_hn x_kn) + D_h u_k. Only one of each conjugate pair is stored; B is 1, since only the products
    of B and C matter. Stable for every value of the parameters.

    Parameters, all real: log_dt, D (H,); log_A_real, A_imag, C_re, C_im (H, N).
    At the start the poles are those of `init` in every channel, steps are log-uniform on [dt_min, dt_max], re and im
    of C are N(0, 1 / 2), and D is N(0, 1).

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
        check_size("S4D", width, order, generator)
        check_steps("S4D", dt_min, dt_max)
        self.discretization = member(Sampling, discretization, "S4D: discretization")
        decay, frequency = initial_poles(member(DiagonalInit, init, "S4D: init"), order)
        self.log_dt = nn.Parameter(log_uniform(dt_min, dt_max, (width,), generator))
        self.log_A_real = nn.Parameter(torch.log(decay).float().repeat(width, 1))
        self.A_imag = nn.Parameter(frequency.float().repeat(width, 1))
        self.C_re = nn.Parameter(torch.randn(width, order, generator=generator) * 0.5**0.5)
        self.C_im = nn.Parameter(torch.randn(width, order, generator=generator) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(width, generator=generator))

    @property
    def order(self) -> int:
        """The number N of complex states of each channel, each of which stands for a conjugate pair."""
        return self.A_imag.shape[1]

    def sampled(self) -> Sampled:
        """The discrete poles and input gains (H, N)."""
        step = precise(self.log_dt).exp()[:, None]
        return sample(precise(self.log_A_real).exp(), self.A_imag, step, self.discretization)

    def system(self) -> DiagonalBank:
        """The layer as it acts, with the factor 2 of conjugate pairs in C."""
        return sampled_bank(self.sampled(), 2 * self.C_re, 2 * self.C_im, self.D)
