"""The structured state space layer S4 of Gu, Goel and Ré 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressm.layers.bank import BankLayer
from compressm.layers.base import check_size
from compressm.layers.hippo import check_steps, diagonal_legs, legs, log_uniform
from compressm.layers.systems import DenseBank, DiagonalBank
from compressm.ops.bank import bank_convolution, bank_lti, bank_step
from compressm.ops.dense_bank import dense_bank_response
from compressm.ops.low_rank import low_rank_response, squarings_are_faster
from compressm.ops.precision import complex_dtype, precise, working_dtype
from compressm.ops.sampling import Sampling, sample


class S4(BankLayer):
    """A bank of H systems whose state matrix is diagonal plus low rank (arXiv 2111.00396, section 3).

    For channel h: x' = (diag(s_h) - p_h p_h*) x + b_h u with s = -exp(log_A_real) + i A_imag, sampled with the step
    d_h = exp(log_dt_h) by the trapezoidal rule, Ad = (I - d/2 A)^{-1} (I + d/2 A), Bd = (I - d/2 A)^{-1} d b;
    x_k = Ad x_{k-1} + Bd u_k and y_k = Re(C_h x_k) + D_h u_k. A + A* is negative definite, so the layer is stable for
    every value of the parameters. Complex states are stored whole: no conjugate halves.

    Sampled, the state matrix is diagonal plus low rank again. The kernel C Ad^l Bd comes from that form, in float64,
    since for large P its terms cancel (`low_rank_response`), or for few states and long inputs from powers of the
    sampled matrix, of which none lengthens a vector (`dense_bank_response`). A cut makes the layer diagonal: P loses
    its only row, and it then runs as S4D does. The gradient of P would vanish at P = 0, so it stays diagonal.

    Parameters, all real: log_dt, D (H,); log_A_real, A_imag, B_re, B_im, C_re, C_im (H, N); P_re, P_im (R, H, N) with
    R = 1, or 0 after a cut. At the start A and B are HiPPO-LegS in the eigenvectors of its normal part, steps are
    log-uniform on [dt_min, dt_max], re and im of C are N(0, 1 / 2), and D is N(0, 1).

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
        check_size("S4", width, order, generator)
        check_steps("S4", dt_min, dt_max)
        frequency, vectors = diagonal_legs(order)
        _, b, p = (t.to(vectors.dtype) for t in legs(order))
        b, p = vectors.mH @ b, vectors.mH @ p

        def repeated(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.float().repeat(width, 1))

        self.log_dt = nn.Parameter(log_uniform(dt_min, dt_max, (width,), generator))
        self.log_A_real = repeated(torch.log(torch.full_like(frequency, 0.5)))
        self.A_imag = repeated(frequency)
        self.P_re, self.P_im = (nn.Parameter(x.float().repeat(1, width, 1)) for x in (p.real, p.imag))
        self.B_re, self.B_im = repeated(b.real), repeated(b.imag)
        self.C_re = nn.Parameter(torch.randn(width, order, generator=generator) * 0.5**0.5)
        self.C_im = nn.Parameter(torch.randn(width, order, generator=generator) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(width, generator=generator))

    @property
    def order(self) -> int:
        """The number N of complex states of each channel."""
        return self.A_imag.shape[1]

    @property
    def is_diagonal(self) -> bool:
        """Whether the low-rank part is gone, as it is after a cut."""
        return self.P_re.shape[0] == 0

    def respond(self, u: Tensor) -> Tensor:
        """The output (batch, L, H) for an input without padding."""
        if self.is_diagonal:
            return bank_lti(*self._diagonal_system(), u, feedthrough=self.D)
        with torch.autocast(device_type=u.device.type, enabled=False):
            dtype, length = working_dtype(u), u.shape[1]
            if squarings_are_faster(self.order, length):
                a, b, c = self.sampled()
                kernel = dense_bank_response(a, b.to(complex_dtype(dtype)), c.to(complex_dtype(dtype)), length)
            else:
                nu, theta, p, q, b = self.sampled_low_rank()
                kernel = low_rank_response(nu, theta, p, q, b, self._output(), length).to(dtype)
            return bank_convolution(u.to(dtype), kernel, self.D).to(u.dtype)

    def system(self) -> DiagonalBank | DenseBank:
        if self.is_diagonal:
            return DiagonalBank(*self._diagonal_system(), self.D)
        return DenseBank(*self.sampled(), self.D)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state (batch, H, N, 2): real and imaginary parts, in float32 or wider."""
        dtype = torch.promote_types(self.A_imag.dtype, torch.float32)
        return torch.zeros(batch, self.width, self.order, 2, dtype=dtype, device=self.A_imag.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state (batch, H, N, 2) for one input u (batch, H).

        Without a low-rank part the state is that of unit inputs, as in S4D.
        """
        if self.is_diagonal:
            return bank_step(*self._diagonal_system(), u, state, feedthrough=self.D)
        dtype = state.dtype
        nu, theta, p, q, b = self.sampled_low_rank()
        pole = torch.polar(torch.exp(-nu), theta)
        pole, p, q, b, c = (t.to(complex_dtype(dtype)) for t in (pole, p, q, b, self._output()))
        v, x = u.to(dtype), torch.view_as_complex(state)
        x = pole * x - p * (q * x).sum(-1, keepdim=True) + b * v.unsqueeze(-1)
        y = (c * x).sum(-1).real + self.D.to(dtype) * v
        return y.to(u.dtype), torch.view_as_real(x)

    def sampled(self) -> tuple[Tensor, Tensor, Tensor]:
        """The discrete systems in float64: Ad (H, N, N), Bd (H, N), C (H, N)."""
        nu, theta, p, q, b = self.sampled_low_rank()
        pole = torch.polar(torch.exp(-nu), theta)
        return torch.diag_embed(pole) - p.unsqueeze(-1) * q.unsqueeze(-2), b, self._output()

    def sampled_low_rank(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """nu, theta, p, q, Bd (H, N) in float64: Ad = diag(exp(-nu + i theta)) - p q^T, by the Woodbury identity."""
        step = precise(self.log_dt).exp()[:, None]
        nu, theta, re, im = sample(precise(self.log_A_real).exp(), self.A_imag, step, Sampling.BILINEAR)
        gain, b, p = torch.complex(re, im), _complex(self.B_re, self.B_im), _complex(self.P_re[0], self.P_im[0])
        q = gain * p.conj()
        share = 2 + (q * p).sum(-1, keepdim=True)
        b = gain * (b - p * ((q * b).sum(-1, keepdim=True) / share))
        return nu, theta, gain * p, q * (2 / (step * share)), b

    def _output(self) -> Tensor:
        return _complex(self.C_re, self.C_im)

    def _diagonal_system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        step = precise(self.log_dt).exp()[:, None]
        nu, theta, gain_re, gain_im = sample(precise(self.log_A_real).exp(), self.A_imag, step, Sampling.BILINEAR)
        dtype = torch.promote_types(self.C_re.dtype, torch.float32)
        gain, b, c = (
            torch.complex(re.to(dtype), im.to(dtype))
            for re, im in ((gain_re, gain_im), (self.B_re, self.B_im), (self.C_re, self.C_im))
        )
        weight = gain * b * c
        return nu, theta, weight.real, weight.imag


def _complex(re: Tensor, im: Tensor) -> Tensor:
    return torch.complex(precise(re), precise(im))
