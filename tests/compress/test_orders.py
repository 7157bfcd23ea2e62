"""Orders, limits around them, and the operators that reach them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration
from compressm.adapters.lru import LRUAdapter
from compressm.adapters.update import LayerUpdate
from compressm.compress import compress_
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.linalg.balancing import BalancingMethod
from compressm.reduction.criteria import FixedFraction, FixedOrder, HankelEnergy
from compressm.reduction.reducers import BalancedTruncation, Keep, SingularPerturbation
from compressm.reduction.result import Reduction
from compressm.reduction.selection import ModalScore, ModalTruncation
from compressm.settings import Balancing, CompressionSettings

KINDS = [LRU, DenseSSM]


def poles(layer: LRU) -> Tensor:
    return torch.exp(torch.complex(-layer.nu_log.double().exp(), layer.theta_log.double().exp())).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [16, 17, 1000])
def test_an_order_that_is_no_smaller_changes_nothing(
    kind: type[nn.Module], order: int, make: Any, white: Any, state_of: Any, unchanged: Any
) -> None:
    model = nn.Sequential(make(kind))
    before = state_of(model)
    report = compress_(model, white(FixedOrder(order)))
    assert unchanged(before, state_of(model))
    layer = report.layers[0]
    assert not report.changed and layer.order_after == 16
    assert layer.discarded == layer.hinf_error == layer.h2_error == 0
    assert layer.output_change is None and layer.bound == 0


@pytest.mark.parametrize("kind", KINDS)
def test_order_one(kind: type[nn.Module], make: Any, white: Any, impulse: Any) -> None:
    layer = make(kind)
    assert compress_(nn.Sequential(layer), white(FixedOrder(1))).orders() == {"0": 1}
    assert layer.order == 1 and bool(impulse(layer).isfinite().all())
    assert not compress_(nn.Sequential(layer), white(FixedOrder(1))).changed


@pytest.mark.parametrize("kind", KINDS)
def test_discarding_nothing_removes_nothing_of_a_minimal_layer(kind: type[nn.Module], make: Any, white: Any) -> None:
    assert not compress_(nn.Sequential(make(kind)), white(HankelEnergy(0.0))).changed
    everything = compress_(nn.Sequential(make(kind)), white(HankelEnergy(1.0)))
    assert everything.orders() == {"0": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_lower_order_is_cut_at_no_error(kind: type[nn.Module], make: Any, white: Any, impulse: Any) -> None:
    layer = make(kind, order=12)
    with torch.no_grad():
        if kind is LRU:
            layer.C_re[:, 3:8].zero_()
            layer.C_im[:, 3:8].zero_()
            layer.B_re[10] = layer.B_im[10] = 0
        else:  # an unobservable block, an unreachable one, in states that are mixed
            a = torch.block_diag(layer.A[:6, :6], layer.A[6:, 6:])
            t = torch.linalg.qr(torch.randn(12, 12, dtype=a.dtype, generator=torch.Generator().manual_seed(0))).Q
            b, c = layer.B.clone(), layer.C.clone()
            b[6:8], c[:, 8:] = 0, 0
            for p, value in ((layer.A, t @ a @ t.mT), (layer.B, t @ b), (layer.C, c @ t.mT)):
                p.copy_(value)
    before = impulse(layer)
    report = compress_(nn.Sequential(layer), white(HankelEnergy(0.0))).layers[0]
    assert report.order_after == layer.order == 6
    assert report.hinf_error < 1e-9 * report.hinf_norm
    assert torch.allclose(impulse(layer), before, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_orders_are_rounded_up_to_a_multiple(kind: type[nn.Module], make: Any, white: Any, impulse: Any) -> None:
    layer, exact = make(kind, order=20), make(kind, order=20)
    free = compress_(nn.Sequential(exact), white(HankelEnergy(0.3))).layers[0]
    report = compress_(nn.Sequential(layer), white(HankelEnergy(0.3), multiple=8)).layers[0]
    assert free.order_after % 8 and report.order_after == layer.order == math.ceil(free.order_after / 8) * 8
    assert report.real_order >= free.real_order and report.h2_error <= free.h2_error
    assert not compress_(nn.Sequential(make(kind, order=20)), white(FixedOrder(19), multiple=8)).changed


def test_a_layer_of_low_rank_is_padded_to_the_multiple(make: Any, white: Any, impulse: Any) -> None:
    layer = make(order=20)
    with torch.no_grad():
        layer.C_re[:, 5:] = layer.C_im[:, 5:] = 0
    before = impulse(layer)
    report = compress_(nn.Sequential(layer), white(HankelEnergy(0.0), multiple=8)).layers[0]
    assert (report.order_after, report.real_order) == (8, 10)
    assert torch.allclose(impulse(layer), before, atol=1e-9)
    idle = (layer.C_re.abs() + layer.C_im.abs()).sum(0) == 0
    assert int(idle.sum()) == 3 and bool((layer.B_re[idle].abs().sum(-1) > 0).all())
    layer(torch.randn(4, 30, 3, dtype=torch.float64)).square().sum().backward()
    assert bool((layer.C_re.grad[:, idle] != 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gain_that_is_too_small_is_not_worth_a_cut(kind: type[nn.Module], make: Any, white: Any) -> None:
    for order, changed in ((16, False), (15, False), (14, False), (13, False), (12, True)):
        report = compress_(nn.Sequential(make(kind)), white(FixedOrder(order), minimum_gain=0.25))
        assert report.changed is changed


def test_a_floor(make: Any, white: Any) -> None:
    assert compress_(nn.Sequential(make()), white(HankelEnergy(1.0), floor=6)).orders() == {"0": 6}


def test_modal_truncation_keeps_states_as_they_are(make: Any, white: Any) -> None:
    kept: dict[Any, list[int]] = {}
    for reducer in (
        ModalTruncation(),
        ModalTruncation(ModalScore.ENERGY),
        ModalTruncation(keep=Keep.SMALLEST),
        ModalTruncation(keep=Keep.RANDOM, seed=1),
        ModalTruncation(keep=Keep.RANDOM, seed=2),
    ):
        layer, full = make(), make()
        report = compress_(nn.Sequential(layer), white(FixedOrder(6), reducer=reducer)).layers[0]
        kept[reducer] = [int((poles(full) - pole).abs().argmin()) for pole in poles(layer)]
        for name in ("nu_log", "theta_log", "gamma_log", "B_re", "B_im"):
            assert torch.equal(getattr(layer, name), getattr(full, name)[kept[reducer]])
        assert torch.equal(layer.C_im, full.C_im[:, kept[reducer]])
        assert report.bound is None and report.order_after == 6 and report.real_order == 12
        assert (report.controllability, report.observability) == ("none", "none")
    gain = full.gamma_log.exp() * (full.B_re**2 + full.B_im**2).sum(1).sqrt()
    peak = gain * (full.C_re**2 + full.C_im**2).sum(0).sqrt() / (1 - poles(full).abs())
    peaks = peak.argsort(descending=True).tolist()
    largest, _, smallest, one, two = kept.values()
    assert largest == sorted(peaks[:6]) and smallest == sorted(peaks[-6:]) and one != two
    again = make()
    compress_(nn.Sequential(again), white(FixedOrder(6), reducer=ModalTruncation(keep=Keep.RANDOM, seed=1)))
    assert torch.equal(again.nu_log, full.nu_log[one])


def test_balanced_ablations_are_far_worse(make: Any, white: Any) -> None:
    def error(**reducer: Any) -> float:
        report = compress_(nn.Sequential(make()), white(FixedOrder(6), reducer=BalancedTruncation(**reducer))).layers[0]
        assert (report.bound is None) is (reducer.get("keep", Keep.LARGEST) is not Keep.LARGEST)
        return report.h2_error

    largest, random, smallest = error(), error(keep=Keep.RANDOM, seed=3), error(keep=Keep.SMALLEST)
    assert largest < 0.6 * random and largest < 0.6 * smallest
    assert error(keep=Keep.RANDOM, seed=3) == random != error(keep=Keep.RANDOM, seed=4)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_project_give_one_layer(kind: type[nn.Module], make: Any, white: Any, impulse: Any) -> None:
    layers = [make(kind), make(kind)]
    for layer, method in zip(layers, BalancingMethod, strict=True):
        compress_(nn.Sequential(layer), white(FixedOrder(5), reducer=BalancedTruncation(method)))
    assert torch.allclose(impulse(layers[0]), impulse(layers[1]), atol=1e-9)


def test_singular_perturbation_matches_the_gain_at_rest(make: Any, white: Any, impulse: Any) -> None:
    def steady(layer: nn.Module) -> Tensor:
        with torch.no_grad():
            return layer(torch.eye(3, dtype=torch.float64)[:, None].expand(3, 1500, 3))[:, -1]

    layers = {}
    for reducer in (SingularPerturbation(), BalancedTruncation()):
        layer, full = make(DenseSSM), make(DenseSSM)
        report = compress_(nn.Sequential(layer), white(FixedOrder(6), reducer=reducer, exact_norms=True)).layers[0]
        assert report.order_after == 6 and report.hinf_error <= report.bound * (1 + 1e-9)
        layers[reducer] = float((steady(layer) - steady(full)).norm() / steady(full).norm())
        assert torch.equal(layer.D, full.D) is isinstance(reducer, BalancedTruncation)
    perturbed, truncated = layers.values()
    assert perturbed < 1e-9 < 1e-4 < truncated


def test_layers_that_share_everything_are_cut_once(make: Any, white: Any, impulse: Any, calibrate: Any) -> None:
    first, second = make(), make(seed=1)
    for name in dict(first.named_parameters()):
        setattr(second, name, getattr(first, name))
    model = nn.Sequential(first, nn.Tanh(), second)
    calibration = calibrate(model)
    assert len(calibration.capture("0").inputs) == 2
    optimizer = torch.optim.Adam(model.parameters())
    report = compress_(model, CompressionSettings(FixedOrder(6)), calibration=calibration, optimizer=optimizer)
    assert [layer.name for layer in report.layers] == ["0"]
    assert first.order == second.order == 6 and first.B_re is second.B_re
    assert torch.equal(impulse(first), impulse(second))
    model(torch.randn(2, 9, 3, dtype=torch.float64)).square().sum().backward()
    optimizer.step()


def test_sizes_of_layers_that_share_everything_change_together(white: Any) -> None:
    class Sized(LRU):
        states = 0

        def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
            self.nu_log.view(self.states or 16)
            return super().forward(u, mask)

    class SizedAdapter(LRUAdapter):
        def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
            update = super().write(layer, reduction)
            return replace(update, attributes={"states": update.order})

    first, second = Sized(3, 16), Sized(3, 16)
    for name in dict(first.named_parameters()):
        setattr(second, name, getattr(first, name))
    compress_(nn.Sequential(first, second), white(FixedOrder(6)), adapters={Sized: SizedAdapter()})
    assert first.states == second.states == 6 and second(torch.randn(1, 4, 3)).shape == (1, 4, 3)


def test_a_module_used_twice_is_cut_once(make: Any, white: Any) -> None:
    shared = make()
    with Calibration(nn.Sequential(shared, shared)) as calibration:
        shared(shared(torch.randn(2, 9, 3, dtype=torch.float64))).square().sum().backward()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    report = compress_(model, CompressionSettings(FixedOrder(6)), calibration=calibration)
    assert report.orders() == {"0": 6} and report.layers[0].controllability == "data"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_frozen_parameters_and_dtypes_stay(kind: type[nn.Module], dtype: torch.dtype, make: Any, white: Any) -> None:
    layer = make(kind).to(dtype).requires_grad_(False)
    before = dict(layer.named_parameters())
    report = compress_(nn.Sequential(layer), white(FixedOrder(5)), optimizer=torch.optim.SGD([torch.zeros(1)]))
    assert report.changed and report.warnings == ()
    for name, p in layer.named_parameters():
        assert p is before[name] and p.dtype is dtype and not p.requires_grad and p.is_contiguous()


def special(radii: list[complex]) -> LRU:
    """A layer with the given poles, real weights where they are real, in which every state counts."""
    layer, g = LRU(3, len(radii), generator=torch.Generator().manual_seed(0)).double(), torch.Generator().manual_seed(1)
    for i, pole in enumerate(radii):
        with torch.no_grad():
            layer.nu_log[i] = math.log(-math.log(abs(pole))) if pole else math.inf
            layer.theta_log[i] = math.log(math.atan2(pole.imag, pole.real) % (2 * math.pi) or 2 * math.pi)
            layer.gamma_log[i] = 0
            for part in (layer.B_re, layer.B_im):
                part[i] = torch.randn(3, generator=g)
            for part in (layer.C_re, layer.C_im):
                part[:, i] = torch.randn(3, generator=g)
            if not complex(pole).imag:
                layer.B_im[i], layer.C_im[:, i] = 0, 0
    return layer


@pytest.mark.parametrize("balancing", list(Balancing))
def test_poles_at_zero_and_real_poles_of_both_signs(balancing: Balancing, white: Any, impulse: Any) -> None:
    kinds = [0.9, -0.8, 0.5, -0.3, 0.0, 1e-9, 0.6 + 0.3j, -0.2 - 0.7j]
    layer = special([complex(p) for p in (*kinds, 0.4j, 0.7, -0.6, 0.2 + 0.2j)])
    with torch.no_grad():  # the last four count for nothing, and two poles at 0 are one state of rank 2
        layer.C_re[:, 8:] = layer.C_im[:, 8:] = 0
    before = impulse(layer)
    report = compress_(nn.Sequential(layer), white(HankelEnergy(1e-12), balancing=balancing)).layers[0]
    assert report.order_after == 8 and torch.allclose(impulse(layer), before, atol=2e-5)
    assert all(bool(p.isfinite().all()) for p in layer.parameters())
    found = poles(layer)
    for pole in (0.9, -0.8, 0.5, -0.3):
        assert float((found - pole).abs().min()) < 1e-6
    assert int((found.abs() < 2e-6).sum()) == 2
    theta = layer.theta_log.detach().exp()
    assert bool((theta > 0).all()) and bool((theta <= 2 * math.pi + 1e-9).all())
    layer(torch.randn(8, 40, 3, dtype=torch.float64)).tanh().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool((p.grad != 0).any()) for p in layer.parameters())


def test_a_fraction_twice(make: Any, white: Any) -> None:
    model = nn.Sequential(make(order=16))
    assert [compress_(model, white(FixedFraction(0.25))).orders()["0"] for _ in range(3)] == [12, 9, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_inside_autocast_is_the_same(kind: type[nn.Module], make: Any, calibrate: Any) -> None:
    plain, inside = make(kind).float(), make(kind).float()
    compress_(nn.Sequential(plain), CompressionSettings(FixedOrder(5)), calibration=calibrate(nn.Sequential(plain)))
    calibration = calibrate(nn.Sequential(inside))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compress_(nn.Sequential(inside), CompressionSettings(FixedOrder(5)), calibration=calibration)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), inside.parameters(), strict=True))
