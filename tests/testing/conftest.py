"""A small diagonal layer whose adapters the tests break on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.base import StateSpaceAdapter
from compressm.adapters.update import LayerUpdate, Reset
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction

_PARTS = ("a_re", "a_im", "b_re", "b_im", "c_re", "c_im")


class Modal(nn.Module):
    """x_k = a x_{k-1} + b u_k, y_k = gain Re(c x_k) + d u_k, the plain way; `gain` is 2 for conjugate pairs."""

    def __init__(self, order: int = 6, width: int = 2, radius: float = 0.9, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        a = torch.polar(radius * torch.rand(order, generator=g).sqrt(), 6.28 * torch.rand(order, generator=g))
        self.a_re, self.a_im = nn.Parameter(a.real.clone()), nn.Parameter(a.imag.clone())
        self.b_re, self.b_im = (nn.Parameter(torch.randn(order, width, generator=g)) for _ in range(2))
        self.c_re, self.c_im = (nn.Parameter(torch.randn(width, order, generator=g)) for _ in range(2))
        self.d = nn.Parameter(torch.randn(width, width, generator=g))
        self.register_buffer("scratch", torch.zeros(3))
        self.gain = 1.0
        self.late = False

    def forward(self, u: Tensor) -> Tensor:
        re = im = u.new_zeros(u.shape[0], len(self.a_re))
        outputs = []
        for v in u.unbind(1):
            before = re, im
            re, im = (
                self.a_re * re - self.a_im * im + v @ self.b_re.mT,
                self.a_re * im + self.a_im * re + v @ self.b_im.mT,
            )
            x = before if self.late else (re, im)
            outputs.append(self.gain * (x[0] @ self.c_re.mT - x[1] @ self.c_im.mT) + v @ self.d.mT)
        return torch.stack(outputs, 1)


class ModalAdapter(StateSpaceAdapter):
    """The adapter of `Modal`, right in everything."""

    def read(self, layer: nn.Module) -> StateSpace:
        re_im = {name: getattr(layer, name).detach().double() for name in (*_PARTS, "d")}
        a, b, c = (torch.complex(re_im[f"{x}_re"], re_im[f"{x}_im"]) for x in "abc")
        return StateSpace(a, b, layer.gain * c, re_im["d"])

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        s = reduction.system
        values = {"a": s.a, "b": s.b, "c": s.c / layer.gain}
        tensors = {
            f"{x}_{part}": getattr(values[x], p).clone() for x in "abc" for part, p in (("re", "real"), ("im", "imag"))
        }
        return LayerUpdate(s.order, tensors, maps=(Reset(_PARTS),))


@pytest.fixture
def modal() -> type[Modal]:
    return Modal


@pytest.fixture
def modal_adapter() -> type[ModalAdapter]:
    return ModalAdapter


@pytest.fixture
def broken() -> Callable[..., StateSpaceAdapter]:
    """Make an adapter of `Modal` with a changed `read(layer, system)` or `write(layer, reduction, update)`."""

    def make(
        read: Callable[[nn.Module, StateSpace], StateSpace] | None = None,
        write: Callable[[nn.Module, Reduction, LayerUpdate], LayerUpdate] | None = None,
    ) -> StateSpaceAdapter:
        class Broken(ModalAdapter):
            def read(self, layer: nn.Module) -> StateSpace:
                system = super().read(layer)
                return system if read is None else read(layer, system)

            def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
                update = super().write(layer, reduction)
                return update if write is None else write(layer, reduction, update)

        return Broken()

    return make


@pytest.fixture
def change() -> Callable[..., LayerUpdate]:
    """An update with some of its tensors replaced or added."""

    def make(update: LayerUpdate, **tensors: Tensor) -> LayerUpdate:
        return replace(update, tensors={**update.tensors, **tensors})

    return make
