"""Bare layers with one system for each channel, and their adapters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.update import LayerUpdate, Pullback, Reset, Select
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules


class Channels(nn.Module):
    """x_k = a x_{k-1} + b u_k, y_k = Re(c x_k) + d u_k for each feature, a = exp(-exp(log_decay) + i frequency)."""

    def __init__(self, width: int, order: int, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.log_decay = nn.Parameter(torch.rand(width, order, generator=g) * 4 - 5)
        self.frequency = nn.Parameter(torch.rand(width, order, generator=g) * math.pi)
        self.B = nn.Parameter(torch.randn(width, order, 2, generator=g))
        self.C = nn.Parameter(torch.randn(width, order, 2, generator=g) / order**0.5)
        self.D = nn.Parameter(torch.randn(width, generator=g))

    def forward(self, u: Tensor) -> Tensor:
        decay = -self.log_decay.exp()
        a = torch.exp(torch.complex(decay, self.frequency.to(decay.dtype)))
        b, c = torch.view_as_complex(self.B), torch.view_as_complex(self.C)
        x, outputs = torch.zeros(u.shape[0], *a.shape, dtype=a.dtype), []
        for step in u.unbind(1):
            x = a * x + b * step.unsqueeze(-1)
            outputs.append((c * x).sum(-1).real)
        return torch.stack(outputs, 1) + self.D * u


class ChannelsAdapter(StateSpaceAdapter):
    """Any similarity of each channel, then diagonal."""

    form = Form.DIAGONAL

    def read(self, layer: nn.Module) -> StateSpace:
        with torch.no_grad():
            log_a = torch.complex(-layer.log_decay.double().exp(), layer.frequency.double())
            b, c = (torch.view_as_complex(t.detach().double().contiguous()) for t in (layer.B, layer.C))
            d = layer.D.double()[:, None, None]
        return StateSpace(log_a.exp(), b.unsqueeze(-1), c.unsqueeze(-2), d, log_a=log_a)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        system = reduction.system
        log_a = torch.log(torch.where(system.a.abs() < 1e-6, torch.full_like(system.a, 1e-6), system.a))
        tensors = {
            "log_decay": torch.log(-log_a.real),
            "frequency": log_a.imag.clone(),
            "B": torch.view_as_real(system.b[..., 0].resolve_conj()).clone(),
            "C": torch.view_as_real(system.c[..., 0, :].resolve_conj()).clone(),
        }
        r = system.order

        def moved(old: dict[str, Tensor]) -> dict[str, Tensor]:
            b, c = (torch.view_as_complex(old[n].double().contiguous()) for n in ("B", "C"))
            b = reduction.embed.adjoint(b.unsqueeze(-1))[..., 0]
            c = reduction.restrict.right_adjoint(c.unsqueeze(-2))[..., 0, :]
            return {"B": torch.view_as_real(b.resolve_conj()), "C": torch.view_as_real(c.resolve_conj())}

        def sizes(old: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: old[n].double().mean(1, keepdim=True).expand(-1, r, -1).clone() for n in ("B", "C")}

        maps = (Pullback(("B", "C"), moved, sizes), Reset(("log_decay", "frequency")))
        return LayerUpdate(r, tensors, maps=maps)


class TiedChannels(Channels):
    """The poles are the same for all features, as in DSS: only a choice of states can be stored."""

    def __init__(self, width: int, order: int, seed: int = 0) -> None:
        super().__init__(width, order, seed)
        self.log_decay = nn.Parameter(self.log_decay.detach()[:1].clone())
        self.frequency = nn.Parameter(self.frequency.detach()[:1].clone())

    def forward(self, u: Tensor) -> Tensor:
        a = torch.exp(torch.complex(-self.log_decay.exp(), self.frequency.to(self.log_decay.dtype)))
        b, c = torch.view_as_complex(self.B), torch.view_as_complex(self.C)
        x, outputs = torch.zeros(u.shape[0], *b.shape, dtype=a.dtype), []
        for step in u.unbind(1):
            x = a * x + b * step.unsqueeze(-1)
            outputs.append((c * x).sum(-1).real)
        return torch.stack(outputs, 1) + self.D * u


class TiedAdapter(ChannelsAdapter):
    """One keep-set for all channels; B and C of the kept states may change."""

    form = Form.SELECTION

    def read(self, layer: nn.Module) -> StateSpace:
        return super().read(_Untied(layer))

    def selection(self, layer: nn.Module) -> SelectionRules:
        return SelectionRules(shared=True, refit_outputs=True)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        keep, system = reduction.keep, reduction.system
        poles, weights = Select(("log_decay", "frequency"), keep, 1), Select(("B", "C"), keep, 1)
        tensors = {n: layer.get_parameter(n).detach()[:, keep].clone() for n in poles.names}
        tensors["B"] = torch.view_as_real(system.b[..., 0].resolve_conj()).clone()
        tensors["C"] = torch.view_as_real(system.c[..., 0, :].resolve_conj()).clone()
        return LayerUpdate(len(keep), tensors, maps=(poles, weights))


class _Untied:
    """What `ChannelsAdapter.read` looks at."""

    def __init__(self, layer: nn.Module) -> None:
        width = layer.B.shape[0]
        self.log_decay, self.frequency = (t.detach().expand(width, -1) for t in (layer.log_decay, layer.frequency))
        self.B, self.C, self.D = layer.B, layer.C, layer.D.detach()


@pytest.fixture
def channels() -> type[Channels]:
    return Channels


@pytest.fixture
def adapters() -> dict[type[nn.Module], StateSpaceAdapter]:
    return {Channels: ChannelsAdapter(), TiedChannels: TiedAdapter()}


@pytest.fixture
def tied_channels() -> type[TiedChannels]:
    return TiedChannels
