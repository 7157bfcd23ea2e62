"""The diagonal state space layer DSS of Gupta, Gu and Berant 2022."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn

from compressm.checks import require_integer
from compressm.layers.bank import DiagonalBankLayer, sampled_bank
from compressm.layers.base import check_size, member
from compressm.layers.hippo import DiagonalInit, check_steps, initial_poles, log_uniform
from compressm.layers.systems import DiagonalBank
from compressm.ops.precision import precise
from compressm.ops.sampling import Sampled, Sampling, sample


class DSSKernel(Enum):
    """The two kernels of the layer, with s a pole and d the step."""

    EXP = "exp"  # w (e^{s d} - 1) / s e^{s d l}: zero-order hold
    SOFTMAX = "softmax"  # w / s e^{s d l} / (the sum of e^{s d k} over k < length)


class DSS(DiagonalBankLayer):
    """A bank of H diagonal systems with the same continuous poles (arXiv 2203.14343, proposition 1).

    s = -exp(log_A_real) + i A_imag, poles lambda_h = e^{s d_h} with a step d_h = exp(log_dt_h) for each channel;
    x_k = lambda x_{k-1} + g u_k and y_k = Re(sum_n C_hn x_kn) + D_h u_k, with the gain g of the kernel. Complex states
    are stored whole: no conjugate halves. Stable for every value of the parameters.

    The softmax kernel divides by a sum over `length` steps. As published, that is the length of each input, so that
    the layer is no one system for all lengths; here it is a setting, so that it is one, and equal to the published
    one for inputs of that length.

    Parameters, all real: log_A_real, A_imag (N,); log_dt, D (H,); C_re, C_im (H, N).
    At the start the poles are those of `init` (LEGS as published), steps are log-uniform on [dt_min, dt_max], re and
    im of C and D are N(0, 1).

    Raises ConfigError for a width below 1, a negative order, a length below 1, or steps that are not
    0 < dt_min <= dt_max.
    """

    def __init__(
        self,
        width: int,
        order: int,
        *,
        init: DiagonalInit | str = DiagonalInit.LEGS,
        discretization: DSSKernel | str = DSSKernel.EXP,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        length: int = 1024,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("DSS", width, order, generator)
        check_steps("DSS", dt_min, dt_max)
        require_integer("DSS: length", length, 1)
        self.discretization = member(DSSKernel, discretization, "DSS: discretization")
        self.length = length
        decay, frequency = initial_poles(member(DiagonalInit, init, "DSS: init"), order)
        self.log_A_real = nn.Parameter(torch.log(decay).float())
        self.A_imag = nn.Parameter(frequency.float())
        self.log_dt = nn.Parameter(log_uniform(dt_min, dt_max, (width,), generator))
        self.C_re = nn.Parameter(torch.randn(width, order, generator=generator))
        self.C_im = nn.Parameter(torch.randn(width, order, generator=generator))
        self.D = nn.Parameter(torch.randn(width, generator=generator))

    @property
    def order(self) -> int:
        """The number N of complex states of each channel."""
        return self.A_imag.shape[0]

    def sampled(self) -> Sampled:
        """The discrete poles and input gains (H, N)."""
        decay, frequency = precise(self.log_A_real).exp(), precise(self.A_imag)
        return sample_kernel(decay, frequency, precise(self.log_dt).exp(), self.discretization, self.length)

    def system(self) -> DiagonalBank:
        """The layer as it acts."""
        return sampled_bank(self.sampled(), self.C_re, self.C_im, self.D)


def sample_kernel(decay: Tensor, frequency: Tensor, step: Tensor, kernel: DSSKernel, length: int) -> Sampled:
    """Discrete poles and gains (H, N) of the poles -decay + i frequency (N,) with the steps (H,)."""
    step = step[:, None]
    held = sample(decay, frequency, step, Sampling.ZOH)
    if kernel is DSSKernel.EXP:
        return held
    whole = sample(decay, frequency, step * length, Sampling.ZOH)  # (e^{s d length} - 1) / s
    pole = torch.complex(-decay, frequency)
    gain = torch.complex(held.gain_re, held.gain_im) / (pole * torch.complex(whole.gain_re, whole.gain_im))
    return Sampled(held.nu, held.theta, gain.real, gain.imag)
