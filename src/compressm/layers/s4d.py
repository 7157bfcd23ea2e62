"""The diagonal state space layer S4D of Gu, Gupta, Goel and Ré 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.layers.base import SequenceLayer, check_size, member
from compressm.layers.hippo import DiagonalInit, check_steps, initial_poles, log_uniform
from compressm.layers.layout import Layout
from compressm.layers.systems import DiagonalBank
from compressm.ops.bank import bank_lti, bank_step
from compressm.ops.precision import precise
from compressm.ops.sampling import Sampled, Sampling, sample


class S4D(SequenceLayer):
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
    def width(self) -> int:
        """The number H of channels."""
        return self.D.shape[0]

    @property
    def order(self) -> int:
        """The number N of complex states of each channel, each of which stands for a conjugate pair."""
        return self.A_imag.shape[1]

    def sampled(self) -> Sampled:
        """The discrete poles and input gains (H, N)."""
        step = precise(self.log_dt).exp()[:, None]
        return sample(precise(self.log_A_real).exp(), self.A_imag, step, self.discretization)

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H) from a zero state.

        Where `mask` (batch, L) is False the input counts as zero; outputs there mean nothing.
        """
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        return bank_lti(*self._system(), u, feedthrough=self.D)

    def layout(self, batch: int, length: int) -> Layout:
        """Channels first, always: every channel is a convolution of its own."""
        return Layout.CHANNELS

    def system(self) -> DiagonalBank:
        return DiagonalBank(*self._system(), self.D)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, H, N, 2): real and imaginary parts, in float32 or wider."""
        dtype = torch.promote_types(self.A_imag.dtype, torch.float32)
        return torch.zeros(batch, self.width, self.order, 2, dtype=dtype, device=self.A_imag.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, H, N, 2) for one input u (batch, H)."""
        return bank_step(*self._system(), u, state, feedthrough=self.D)

    def _system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        nu, theta, gain_re, gain_im = self.sampled()
        dtype = torch.promote_types(self.C_re.dtype, torch.float32)
        gain_re, gain_im = 2 * gain_re.to(dtype), 2 * gain_im.to(dtype)
        w_re = gain_re * self.C_re - gain_im * self.C_im
        w_im = gain_re * self.C_im + gain_im * self.C_re
        return nu, theta, w_re, w_im
