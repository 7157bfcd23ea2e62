"""Modules that hold what the layers of 2022 around the S4 repository hold and do what their equations say."""

from __future__ import annotations

import math

import torch
from s4_modules import TRANSFORMS, DiagonalKernel, LowRankKernel, convolved, hold
from torch import Tensor, nn
from torch.nn import functional as F

WITHOUT_FLOOR = TRANSFORMS | {"relu": (torch.relu, lambda x: x)}


class DiagonalKernel2022(DiagonalKernel):
    """s = -T(inv_A_real) + i A_imag with one step for each channel; B is (S, n, 2)."""

    def __init__(
        self,
        width: int,
        states: int,
        *,
        channels: int = 1,
        n_ssm: int | None = None,
        disc: str = "bilinear",
        real_type: str = "exp",
        bandlimit: float | None = None,
        force_real: bool = False,
        frozen: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.H, self.N, self.n_ssm, self.disc, self.L = width, states // 2, n_ssm or width, disc, None
        self.real_type, self.bandlimit, self.force_real, self.channels = real_type, bandlimit, force_real, channels
        rows, n = self.n_ssm, self.N
        values = {
            "C": torch.randn(channels, width, n, 2),
            "B": torch.randn(rows, n, 2),
            "log_dt": torch.log(0.02 + 0.2 * torch.rand(width)),
            "inv_A_real": TRANSFORMS[real_type][1](0.2 + 0.6 * torch.rand(rows, n)),
            "A_imag": math.pi * (0.2 + torch.arange(n)) * (1 + 0.05 * torch.rand(rows, n)),
        }
        hold(self, values, frozen)

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        copies = self.H // self.n_ssm
        s = torch.complex(-TRANSFORMS[self.real_type][0](self.inv_A_real), self.A_imag).repeat(copies, 1)
        b, c = torch.view_as_complex(self.B).repeat(copies, 1)[None], torch.view_as_complex(self.C)
        assert c.shape[-1] == self.N
        return s, self.log_dt.exp()[:, None] * rate, b, c


class LowRankKernel2022(LowRankKernel):
    """s = -T(inv_w_real) + i w_imag; C is kept for a length in the buffer L."""

    def __init__(
        self,
        width: int,
        states: int,
        *,
        channels: int = 1,
        n_ssm: int | None = None,
        rank: int = 1,
        l_max: int | None = None,
        real_type: str = "exp",
        frozen: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.H, self.N, self.n_ssm, self.rank = width, states // 2, n_ssm or width, rank
        self.real_type, self.bandlimit, self.l_max = real_type, None, l_max
        rows, n = self.n_ssm, self.N
        values = {
            "C": torch.randn(channels, width, n, 2),
            "B": torch.randn(1, rows, n, 2),
            "P": 0.7 * torch.randn(rank, rows, n, 2),
            "log_dt": torch.log(0.02 + 0.2 * torch.rand(width)),
        }
        frequency = math.pi * (0.2 + torch.arange(n)) * (1 + 0.05 * torch.rand(rows, n))
        hold(self, values | self.stored(0.2 + 0.6 * torch.rand(rows, n), frequency), frozen)
        self.start()

    def stored(self, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        return {"inv_w_real": WITHOUT_FLOOR[self.real_type][1](decay), "w_imag": frequency}

    def start(self) -> None:
        self.register_buffer("L", torch.tensor(0))

    @property
    def length(self) -> int:
        return int(self.L)

    @length.setter
    def length(self, value: int) -> None:
        self.L = torch.tensor(value)

    def poles(self) -> Tensor:
        return torch.complex(-WITHOUT_FLOOR[self.real_type][0](self.inv_w_real), self.w_imag)

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        copies = self.H // self.n_ssm
        b, c = torch.view_as_complex(self.B).repeat(1, copies, 1), torch.view_as_complex(self.C)
        assert c.shape[-1] == self.N
        return self.poles().repeat(copies, 1), self.log_dt.exp()[:, None] * rate, b, c


class FirstLowRankKernel(LowRankKernel2022):
    """The kernel of the first release: the length is a number, and C is kept for it from the start."""

    hurwitz = True

    def __init__(self, width: int, states: int, *, l_max: int = 1, **options) -> None:
        self.first = l_max
        super().__init__(width, states, **options)
        self.l_max = None

    def stored(self, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        return {"log_w_real": decay.log(), "w_imag": frequency}

    def start(self) -> None:
        self.length = 0
        self.grow(self.first)

    @property
    def length(self) -> int:
        return self.L

    @length.setter
    def length(self, value: int) -> None:
        self.L = value

    def poles(self) -> Tensor:
        return torch.complex(-self.log_w_real.exp(), self.w_imag)


class FreeLowRankKernel(FirstLowRankKernel):
    """With poles that may be anything, and with Q apart from P: it starts near conj(P), which is stable."""

    hurwitz = False

    def stored(self, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        return {"w": torch.stack([-decay, frequency], -1)}

    def start(self) -> None:
        away = 1 + 0.2 * torch.rand_like(self.P)
        hold(self, {"Q": self.P.detach() * away * torch.tensor([1.0, -1.0])}, not isinstance(self.P, nn.Parameter))
        super().start()

    def poles(self) -> Tensor:
        return torch.view_as_complex(self.w)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        p, q = (torch.view_as_complex(x).repeat(1, self.H // self.n_ssm, 1) for x in (self.P, self.Q))
        return p, q


KERNELS = {
    "diagonal": DiagonalKernel2022,
    "low rank": LowRankKernel2022,
    "first": FirstLowRankKernel,
    "free": FreeLowRankKernel,
}


class Wrapper(nn.Module):
    """What is between layer and kernel; N counts both of each conjugate pair. The first one rounds what it returns."""

    def __init__(self, kernel: nn.Module, width: int, states: int) -> None:
        super().__init__()
        self.H, self.N, self.kernel = width, states, kernel

    def forward(self, state: Tensor | None = None, L: int | None = None, rate: float = 1.0) -> tuple[Tensor, None]:
        found, _ = self.kernel(state=state, L=L, rate=rate)
        return (found.float() if isinstance(self.kernel, FirstLowRankKernel) else found), None


class DSSKernel(nn.Module):
    """K_l = Re sum_n W_n g_n e^{z_n l} with z = (Re s dt_1, Im s dt_2), and s the same for all channels."""

    def __init__(
        self, width: int, states: int, *, channels: int = 1, version: str = "exp", two_steps: bool = True, **ignored
    ) -> None:
        super().__init__()
        self.H, self.N, self.version, self.epsilon, self.max_real_Lambda = width, states, version, 1e-7, 1e-4
        decay, frequency = 0.2 + torch.rand(states), math.pi * torch.linspace(-3, 3, states) + 0.3
        if "re-im" in version:
            frequency = frequency.abs()
        step = torch.log(0.02 + 0.2 * torch.rand(width))
        values = {"W": torch.randn(channels, width, states, 2)}
        values["log_dt"] = torch.stack([step, step + 0.3], -1) if two_steps else step
        if "exp" in version:
            values["Lambda_log_neg_re"] = decay.log()
            values |= {"Lambda_log_im": frequency.log()} if "im" in version else {"Lambda_im": frequency}
        else:
            values["Lambda"] = torch.stack([-decay, frequency], -1)
        hold(self, values, False)

    def forward(self, L: int, state: Tensor | None = None) -> tuple[Tensor, None]:
        if "exp" in self.version:
            im = self.Lambda_log_im.exp() if "im" in self.version else self.Lambda_im
            re = -self.Lambda_log_neg_re.exp()
        else:
            re, im = self.Lambda.unbind(-1)
            re = re.clip(max=self.max_real_Lambda) if "clip" in self.version else re
        step = self.log_dt.exp().unsqueeze(-1).expand(self.H, 2) if self.log_dt.ndim == 1 else self.log_dt.exp()
        s, z = torch.complex(re, im), torch.complex(step[:, :1] * re, step[:, 1:] * im)
        if self.version == "softmax":
            x = torch.expm1(z * L) * s
            gain = torch.expm1(z) * x.conj() / (x * x.conj() + self.epsilon)
        else:
            gain = torch.ones_like(z) if "no-scale" in self.version else torch.expm1(z) / s
        powers = torch.exp(z[..., None] * torch.arange(L))
        return torch.einsum("chn,hnl->chl", torch.view_as_complex(self.W) * gain, powers).real.float(), None


class Activated(nn.Module):
    """The layer around a kernel: its `activation` is called with the convolution and D u."""

    def __init__(
        self,
        width: int,
        states: int,
        *,
        kind: str = "diagonal",
        channels: int = 1,
        bidirectional: bool = False,
        transposed: bool = True,
        dropout: float = 0.0,
        hyper: bool = False,
        bottleneck: int | None = None,
        max_kernel_length: int | None = None,
        **options,
    ) -> None:
        super().__init__()
        self.bidirectional, self.transposed, self.hyper, self.bottleneck = bidirectional, transposed, hyper, bottleneck
        self.max_kernel_length = max_kernel_length
        if bottleneck is not None:
            self.input_linear = nn.Linear(width, width // bottleneck)
            width //= bottleneck
        channels *= 2 if hyper else 1
        self.D = nn.Parameter(torch.randn(channels, width))
        channels *= 2 if bidirectional else 1
        if kind == "dss":
            self.h, self.n, self.kernel = width, states, DSSKernel(width, states, channels=channels, **options)
        else:
            self.H, self.N = width, states
            self.kernel = Wrapper(KERNELS[kind](width, states, channels=channels, **options), width, states)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(dropout)
        self.output_linear = nn.Conv1d(self.D.numel() // (2 if hyper else 1), width, 1)

    def systems(self, u: Tensor) -> Tensor:
        """(batch, p, H, L)."""
        kernel, _ = self.kernel(L=min(u.shape[-1], self.max_kernel_length or u.shape[-1]))
        if self.bidirectional:
            forwards, backwards = kernel.chunk(2)
            later = F.pad(convolved(u.flip(-1), backwards), (1, 0))[..., :-1].flip(-1)
            y = convolved(u, forwards) + later
        else:
            y = convolved(u, kernel)
        return y + torch.einsum("bhl,ch->bchl", u, self.D)

    def forward(
        self, u: Tensor, state: Tensor | None = None, rate: float = 1.0, lengths: Tensor | None = None, **ignored
    ) -> tuple[Tensor, None]:
        u = u if self.transposed else u.mT
        if lengths is not None:
            u = u * (torch.arange(u.shape[-1]) < lengths[:, None, None])
        u = u if self.bottleneck is None else torch.tanh(self.input_linear(u.mT)).mT
        y = self.systems(u)
        if self.hyper:
            y, gate = y.chunk(2, 1)
            y = y * gate
        y = self.output_linear(self.dropout(self.activation(y.flatten(1, 2))))
        return (y if self.transposed else y.mT), None


class Liquid(Activated):
    """With products of neighbouring inputs besides, as Liquid-S4 adds them."""

    def __init__(self, *args, liquid: int = 1, **options) -> None:
        super().__init__(*args, **options)
        self.liquid = liquid

    def systems(self, u: Tensor) -> Tensor:
        y, product = super().systems(u), u
        _, step, b, c = self.kernel.kernel.continuous()
        for degree in range(2, self.liquid + 2):
            product = product * F.pad(product[..., :-1], (1, 0))
            weight = 2 * (c * (b * step) ** degree).sum(-1).real  # (p, H)
            y = y + torch.einsum("bhl,ph->bphl", product, weight)
        return y


class ShiftKernel(nn.Module):
    """K_l = sum_n B_n C_{n+l}: finite, without a recurrence."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.H, self.N = width, states
        self.B, self.C = nn.Parameter(torch.randn(width, states)), nn.Parameter(torch.randn(1, width, states))

    def forward(self, state: Tensor | None = None, rate: float = 1.0, L: int = 1) -> tuple[Tensor, None]:
        padded = F.pad(self.C, (0, L))
        return torch.stack([(self.B * padded[..., k : k + self.N]).sum(-1) for k in range(L)], -1), None


class H3(nn.Module):
    """q * diagonal(shift(k) * v), on (batch, L, H)."""

    def __init__(self, width: int, states: int, **options) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.ssm_k_kernel = Wrapper(ShiftKernel(width, states), width, states)
        self.ssm_k_D = nn.Parameter(torch.randn(width))
        self.kernel = Wrapper(DiagonalKernel2022(width, states, **options), width, states)
        self.D, self.output_linear = nn.Parameter(torch.randn(width)), nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        q, k, v = (map_(u).mT for map_ in (self.q_proj, self.k_proj, self.v_proj))
        k = convolved(k, self.ssm_k_kernel(L=u.shape[1])[0])[:, 0] + k * self.ssm_k_D[:, None]
        kv = k * v
        y = convolved(kv, self.kernel(L=u.shape[1])[0])[:, 0] + kv * self.D[:, None]
        return self.output_linear((q * y).mT)
