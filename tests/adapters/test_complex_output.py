"""Foreign layers whose output is complex: y = C x, not its real part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressm import compress_
from compressm.adapters.base import StateSpaceAdapter
from compressm.adapters.calibration import Calibration, Capture
from compressm.adapters.holding import double
from compressm.adapters.moments import controllability_moments, observability_moments
from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import AdapterError
from compressm.linalg.forms import Frame
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import Reduction
from compressm.settings import CompressionSettings
from compressm.testing import check_adapter

PARTS = ("a", "b", "c")


class Complex(nn.Module):
    """x_k = a x_{k-1} + b u_k, y_k = c x_k, all complex but the input."""

    def __init__(self, order: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        radius, angle = (torch.rand(order, generator=generator) for _ in range(2))
        self.a = nn.Parameter(torch.polar(0.5 + 0.4 * radius, 3 * angle))
        self.b = nn.Parameter(torch.randn(order, 2, dtype=torch.complex64, generator=generator))
        self.c = nn.Parameter(torch.randn(3, order, dtype=torch.complex64, generator=generator))

    def forward(self, u: Tensor) -> Tensor:
        x, outputs = self.b.new_zeros(len(u), len(self.a)), []
        for v in u.unbind(1):
            x = self.a * x + v.to(x.dtype) @ self.b.mT
            outputs.append(x @ self.c.mT)
        return torch.stack(outputs, 1)


class ComplexAdapter(StateSpaceAdapter):
    def read(self, layer: nn.Module) -> StateSpace:
        return StateSpace(*(double(layer, name) for name in PARTS), output="complex")

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        tensors = {name: getattr(reduction.system, name).clone() for name in PARTS}
        return LayerUpdate(reduction.system.order, tensors, maps=(Reset(PARTS),))


def captured(layer: nn.Module, length: int = 40) -> tuple[Capture, Tensor]:
    """What a pass with the loss Re(sum conj(g) y) leaves, and g."""
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(4, length, 2, generator=generator)
    g = torch.randn(4, length, 3, dtype=torch.complex64, generator=generator)
    g.real *= 0.1  # mostly imaginary: dropping that part would be seen
    with Calibration(layer, adapters={Complex: ComplexAdapter()}) as calibration:
        (g.conj() * layer(u)).sum().real.backward()
    capture = calibration.capture("")
    assert capture is not None
    return capture, g


def test_the_laws() -> None:
    check_adapter(Complex, adapter=ComplexAdapter())


def test_a_layer_of_which_only_the_real_part_was_read_is_refused() -> None:
    class Real(ComplexAdapter):
        def read(self, layer: nn.Module) -> StateSpace:
            return replace(super().read(layer), output="real")

    with pytest.raises(AdapterError, match="differs from that of Complex's own forward pass"):
        compress_(Complex(), CompressionSettings(FixedOrder(3)), adapters={Complex: Real()})


def test_gradients_keep_their_imaginary_part() -> None:
    capture, g = captured(Complex())
    assert torch.equal(capture.gradients[0][0], g)


@pytest.mark.parametrize("length", [40, 1500])
def test_the_moments_of_states_and_costates(length: int) -> None:
    """Against x_k = A x_{k-1} + B u_k and p_k = A* p_{k+1} + C* g_k written out."""
    layer = Complex()
    capture, g = captured(layer, length)
    system = ComplexAdapter().read(layer)

    def mean(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
        x, total = torch.zeros(len(values), len(a), dtype=a.dtype), 0
        for v in values.to(a.dtype).unbind(1):
            x = x * a + v @ b.mT
            total = total + x.mT @ x.conj()
        return total / (values.shape[0] * values.shape[1])

    pairs = [
        (controllability_moments(system, capture, Frame.COMPLEX), mean(system.a, system.b, capture.inputs[0][0])),
        (observability_moments(system, capture, Frame.COMPLEX), mean(system.a.conj(), system.c.mH, g.flip(1))),
    ]
    for found, wanted in pairs:
        assert found is not None
        assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_it_is_cut_under_data_and_loss() -> None:
    layer = Complex()
    capture, _ = captured(layer)
    with Calibration(layer, adapters={Complex: ComplexAdapter()}) as calibration:
        layer(capture.inputs[0][0]).abs().square().sum().backward()
    settings = CompressionSettings(FixedOrder(4))
    (report,) = compress_(layer, settings, calibration=calibration, adapters={Complex: ComplexAdapter()}).layers
    assert (report.order_after, report.controllability, report.observability) == (4, "data", "loss")
    assert layer.a.shape == (4,) and report.output_change is not None and report.output_change < 0.5
