"""Modules that hold what the stand-alone ones of the S4 repository hold and do what their equations say."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRANSFORMS = {
    "none": (lambda x: x, lambda x: x),
    "exp": (torch.exp, torch.log),
    "relu": (lambda x: torch.relu(x) + 1e-4, lambda x: x - 1e-4),
    "sigmoid": (torch.sigmoid, torch.logit),
    "softplus": (F.softplus, lambda x: torch.log(torch.expm1(x))),
}


def both(x: Tensor) -> Tensor:
    """Both partners of each conjugate pair."""
    return torch.cat([x, x.conj()], -1)


def hold(module: nn.Module, values: dict[str, Tensor], frozen: bool) -> None:
    """As parameters with an attribute of their own, or as buffers, which is what a learning rate of 0 makes them."""
    for name, value in values.items():
        if frozen and name != "C":
            module.register_buffer(name, value)
        else:
            parameter = nn.Parameter(value)
            parameter._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]
            module.register_parameter(name, parameter)


class ShortKernel(nn.Module):
    """K_l = 2 Re sum_n C_n (e^{s_n d} - 1) / s_n e^{s_n d l}."""

    def __init__(self, width: int, states: int, frozen: bool = False) -> None:
        super().__init__()
        n = states // 2
        values = {
            "log_dt": torch.log(0.01 + 0.1 * torch.rand(width)),
            "log_A_real": torch.log(0.5 + torch.rand(width, n)),
            "A_imag": math.pi * torch.arange(n).float().repeat(width, 1),
        }
        hold(self, values | {"C": torch.randn(width, n, 2)}, frozen)

    def forward(self, L: int) -> Tensor:
        step = self.log_dt.exp()[:, None]
        s = torch.complex(-self.log_A_real.exp(), self.A_imag)
        weights = torch.view_as_complex(self.C) * torch.expm1(s * step) / s
        return 2 * (weights[..., None] * torch.exp((s * step)[..., None] * torch.arange(L))).sum(1).real


class ShortS4D(nn.Module):
    def __init__(self, width: int, states: int, transposed: bool = True, dropout: float = 0.0, **options) -> None:
        super().__init__()
        self.h, self.n, self.transposed = width, states, transposed
        self.D = nn.Parameter(torch.randn(width))
        self.kernel = ShortKernel(width, states, **options)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(dropout)
        self.output_linear = nn.Sequential(nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=-2))

    def forward(self, u: Tensor, **ignored: object) -> tuple[Tensor, None]:
        u = u if self.transposed else u.mT
        y = convolved(u, self.kernel(L=u.shape[-1])[None]).squeeze(1) + u * self.D[:, None]
        y = self.output_linear(self.dropout(self.activation(y)))
        return (y if self.transposed else y.mT), None


def convolved(u: Tensor, kernel: Tensor) -> Tensor:
    """(batch, H, L) with kernels (p, H, l), as (batch, p, H, L)."""
    n = u.shape[-1] + kernel.shape[-1]
    spectrum = torch.fft.rfft(u, n=n)[:, None] * torch.fft.rfft(kernel, n=n)
    return torch.fft.irfft(spectrum, n=n)[..., : u.shape[-1]]


class DiagonalKernel(nn.Module):
    """s = -T(A_real) - i T'(A_imag), sampled by `disc`; channel h has the state matrix of row h mod n_ssm."""

    def __init__(
        self,
        width: int,
        states: int,
        *,
        channels: int = 1,
        n_ssm: int | None = None,
        disc: str = "zoh",
        dt_tie: bool = True,
        dt_fast: bool = False,
        dt_transform: str = "exp",
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.H, self.N, self.n_ssm, self.disc, self.dt_fast = width, states // 2, n_ssm or width, disc, dt_fast
        self.dt_transform, self.real_transform, self.imag_transform = dt_transform, real_transform, imag_transform
        self.bandlimit, self.is_real = bandlimit, False
        rows, n = self.n_ssm, self.N
        step = TRANSFORMS[dt_transform][1](0.02 + 0.2 * torch.rand(width, 1 if dt_tie else n))
        frequency = math.pi * (0.2 + torch.arange(n)) * (1 + 0.05 * torch.rand(rows, n))
        values = {
            "C": torch.randn(channels, width, n, 2),
            "B": torch.randn(1, rows, n, 2),
            "inv_dt": torch.asinh(step) if dt_fast else step,
            "A_real": TRANSFORMS[real_transform][1](0.2 + 0.6 * torch.rand(rows, n)),
            "A_imag": TRANSFORMS[imag_transform][1](frequency),
        }
        hold(self, values, frozen)

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        copies = self.H // self.n_ssm
        decay = TRANSFORMS[self.real_transform][0](self.A_real)
        frequency = TRANSFORMS[self.imag_transform][0](self.A_imag)
        step = TRANSFORMS[self.dt_transform][0](torch.sinh(self.inv_dt) if self.dt_fast else self.inv_dt)
        b, c = torch.view_as_complex(self.B).repeat(1, copies, 1), torch.view_as_complex(self.C)
        if self.bandlimit is not None:
            c = c * (step * frequency / (2 * math.pi) < self.bandlimit / 2)
        return torch.complex(-decay, -frequency).repeat(copies, 1), step * rate, b, c

    def forward(self, L: int, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, None]:
        s, step, b, c = self.continuous(rate)
        z = s * step
        if self.disc == "bilinear":
            gain, pole = step / (1 - z / 2), (1 + z / 2) / (1 - z / 2)
        else:
            gain, pole = torch.expm1(z) / s, torch.exp(z)
        if self.disc == "dss":
            gain = gain / torch.expm1(z * L)
        powers = torch.exp(torch.log(pole)[..., None] * torch.arange(L))
        return 2 * torch.einsum("chn,hnl->chl", b * c * gain, powers).real, None


class RealKernel(DiagonalKernel):
    """Real poles, B and C; the output is doubled all the same."""

    def __init__(self, width: int, states: int, *, frozen: bool = False, **options) -> None:
        super().__init__(width, 2 * states, **options)
        self.is_real = True
        values = {name: getattr(self, name).detach() for name in ("C", "B", "inv_dt", "A_real")}
        for name in (*values, "A_imag"):
            delattr(self, name)
        hold(self, values | {name: values[name][..., 0].contiguous() for name in "BC"}, frozen)

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        copies = self.H // self.n_ssm
        decay = TRANSFORMS[self.real_transform][0](self.A_real).repeat(copies, 1)
        step, b = TRANSFORMS[self.dt_transform][0](self.inv_dt) * rate, self.B.repeat(1, copies, 1)
        return torch.complex(-decay, 0 * decay), step, b + 0j, self.C + 0j


class LowRankKernel(DiagonalKernel):
    """diag(s) - sum_r P_r P_r* over all pairs, by the generating function at roots of unity of order l_kernel.

    At these roots sum_l C (I - Ad^m) Ad^l z^l over all l is that of C over l < m, so C (I - Ad^m) is what is kept.
    """

    def __init__(self, width: int, states: int, *, rank: int = 1, l_max: int | None = None, **options) -> None:
        super().__init__(width, states, **options)
        self.rank, self.l_max = rank, l_max
        hold(self, {"P": 0.7 * torch.randn(rank, self.n_ssm, self.N, 2)}, False)
        self.register_buffer("l_kernel", torch.tensor(0))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """The factors P and Q of P Q^T."""
        p = torch.view_as_complex(self.P).repeat(1, self.H // self.n_ssm, 1)
        return p, p.conj()

    @property
    def length(self) -> int:
        """What C is kept for."""
        return int(self.l_kernel)

    @length.setter
    def length(self, value: int) -> None:
        self.l_kernel = torch.tensor(value)

    @torch.no_grad()
    def grow(self, length: int) -> None:
        """C for `length` where there is none yet, else for twice the present length."""
        present = self.length
        s, step, _, c = self.continuous()
        (p, q), d = (both(x) for x in self.low_rank()), both(step.expand_as(s))[..., None]
        a = torch.diag_embed(both(s)) - torch.einsum("rhm,rhn->hmn", p, q)
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        sampled = torch.linalg.solve(eye - d / 2 * a, eye + d / 2 * a)
        moved = torch.einsum("hmn,chm->chn", torch.linalg.matrix_power(sampled, present or length), both(c))
        self.C.copy_(torch.view_as_real((both(c) + (moved if present else -moved))[..., : self.N].contiguous()))
        self.length = present + (present or length)

    def forward(self, L: int, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, None]:
        if self.l_max is not None and not self.length:
            self.grow(self.l_max)
        while self.length < L:
            self.grow(L)
        m, r = self.length, self.rank
        s, step, b, c = self.continuous()
        root = torch.exp(torch.tensor(-2j * math.pi / m, dtype=s.dtype)) ** torch.arange(m // 2 + 1)
        self.z = 2 * (1 - root) / (1 + root)  # kept for the next pass
        p, q = self.low_rank()
        left, right = torch.cat([b, p]), torch.cat([c, q])
        v = both(left[:, None] * right * step)
        cauchy = (v[..., None] / (self.z - both(s * step)[..., None])).sum(-2)
        inner = torch.linalg.inv(torch.eye(r) + cauchy[-r:, -r:].permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
        woodbury = torch.einsum("ijhn,jkhn,klhn->ilhn", cauchy[:-r, -r:], inner, cauchy[-r:, :-r])
        return torch.fft.irfft((cauchy[:-r, :-r] - woodbury) * 2 / (1 + root), n=m)[0, ..., :L], None


class Convolution(nn.Module):
    """What `FFTConv` is around a kernel; (p, H) or with `swap_channels` (H, p) channels come out."""

    def __init__(
        self,
        width: int,
        states: int,
        *,
        low_rank: bool = False,
        is_real: bool = False,
        channels: int = 1,
        swap_channels: bool = False,
        bidirectional: bool = False,
        transposed: bool = True,
        dropout: float = 0.0,
        drop_kernel: float = 0.0,
        **options,
    ) -> None:
        super().__init__()
        self.channels, self.swap_channels = channels, swap_channels
        self.bidirectional, self.transposed = bidirectional, transposed
        self.activation, self.D = nn.GELU(), nn.Parameter(torch.randn(channels, width))
        kernel = LowRankKernel if low_rank else RealKernel if is_real else DiagonalKernel
        self.kernel = kernel(width, states, channels=channels * (2 if bidirectional else 1), **options)
        self.drop, self.drop_kernel = nn.Dropout(dropout), nn.Dropout(drop_kernel)

    def forward(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0, **ignored) -> tuple[Tensor, None]:
        x = x if self.transposed else x.mT
        kernel, _ = self.kernel(L=x.shape[-1], rate=rate, state=state)
        if self.bidirectional:
            forwards, backwards = kernel.chunk(2)
            later = F.pad(convolved(x.flip(-1), backwards), (1, 0))[..., :-1].flip(-1)  # from the next step on
            y = convolved(x, self.drop_kernel(forwards)) + later
        else:
            y = convolved(x, self.drop_kernel(kernel))
        y = y + torch.einsum("bhl,ch->bchl", x, self.D)
        y = self.drop(y.transpose(1, 2).flatten(1, 2) if self.swap_channels else y.flatten(1, 2))
        return self.activation(y if self.transposed else y.mT), None
