"""A layer with poles outside the unit circle: an error, no cut, or poles moved inside by a stated margin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import (
    CompressionSettings,
    FixedOrder,
    InTrainingCompressor,
    LayerUpdate,
    ModalTruncation,
    Reset,
    StateSpace,
    StateSpaceAdapter,
    Unstable,
    analyze,
    compress_,
)
from compressm.errors import ConfigError, InvalidSystemError, UnstableSystemError
from compressm.layers import LRU, S4D, DampedLinOSS, DenseSSM
from compressm.linalg.clamping import clamp_poles
from compressm.training import At, OnError

MODES = {mode: CompressionSettings(criterion=FixedOrder(4), unstable=mode, stability_margin=0.01) for mode in Unstable}
ERROR, SKIP, CLAMP = MODES[Unstable.ERROR], MODES[Unstable.SKIP], MODES[Unstable.CLAMP]


class FreePoles(nn.Module):
    """y = Re(C x) + D u with poles that nothing keeps inside the unit circle: one system, or one for each channel."""

    def __init__(self, radius: float, bank: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        channels = (3,) if bank else ()
        self.m = 1 if bank else 3

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*channels, *shape, dtype=torch.complex128, generator=generator))

        self.pole, self.B, self.C = normal(8), normal(8, self.m), normal(self.m, 8)
        with torch.no_grad():
            size = torch.linspace(0.3, 0.95, 8, dtype=torch.float64).expand(self.pole.shape).clone()
            size[(0, -1) if bank else -1] = radius  # of a bank one system only
            self.pole.copy_(torch.polar(size, self.pole.angle()))

    def forward(self, u: Tensor) -> Tensor:
        """By definition."""
        return FreePolesAdapter().read(self).simulate(u)


class FreePolesAdapter(StateSpaceAdapter):
    """Stores any diagonal system."""

    def read(self, layer: nn.Module) -> StateSpace:
        return StateSpace(*(getattr(layer, name).detach() for name in ("pole", "B", "C")))

    def write(self, layer: nn.Module, reduction: Any) -> LayerUpdate:
        s = reduction.system
        return LayerUpdate(s.order, {"pole": s.a, "B": s.b, "C": s.c}, maps=(Reset(("pole", "B", "C")),))


ADAPTERS = {FreePoles: FreePolesAdapter()}


def dense(radius: float) -> nn.Module:
    torch.manual_seed(0)
    layer = DenseSSM(3, 8)
    with torch.no_grad():
        layer.A.mul_(radius / torch.linalg.eigvals(layer.A).abs().max())
    return layer


KINDS = {
    "dense": dense,
    "diagonal": lambda radius: FreePoles(radius, bank=False),
    "bank": lambda radius: FreePoles(radius, bank=True),
}


def model_of(kind: str, radius: float) -> nn.Module:
    """The layer under test, and one that is stable in any case."""
    torch.manual_seed(1)
    return nn.Sequential(KINDS[kind](radius), LRU(3, 8).double())


def radius_of(layer: nn.Module) -> float:
    adapter = FreePolesAdapter() if isinstance(layer, FreePoles) else None
    if adapter is not None:
        return float(adapter.read(layer).spectral_radius().max())
    return float(torch.linalg.eigvals(layer.A.detach().double()).abs().max())


def values(model: nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


def same(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))


def order_of(layer: nn.Module) -> int:
    return layer.pole.shape[-1] if isinstance(layer, FreePoles) else layer.order


@pytest.mark.parametrize("kind", KINDS)
class TestPolicies:
    def test_error_is_the_default_and_changes_nothing(self, kind: str) -> None:
        assert CompressionSettings().unstable is Unstable.ERROR
        model = model_of(kind, 1.2)
        before = values(model)
        with pytest.raises(UnstableSystemError, match=r"^0: .*spectral radius is 1\.(2|19)"):
            compress_(model, ERROR, adapters=ADAPTERS)
        assert same(model, before)

    def test_skip_leaves_this_layer_and_cuts_the_others(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        model = model_of(kind, 1.2)
        before = values(model[0])
        plan = analyze(model, SKIP, adapters=ADAPTERS)
        assert "unstable, not cut" in str(plan.layers[0].reason) and plan.layers[1].planned_order == 4
        report = compress_(model, SKIP, adapters=ADAPTERS)
        assert same(model[0], before) and report.orders() == {"0": 8, "1": 4}
        assert "unstable, not cut: 0: infinite-horizon Gramians" in report.layers[0].fallbacks[0]
        assert "This layer is not cut" in caplog.text
        assert type(report).from_dict(report.to_dict()) == report

    def test_clamp_stores_a_stable_layer_and_says_so(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        model = model_of(kind, 1.2)
        report = compress_(model, CLAMP, adapters=ADAPTERS).layers[0]
        assert report.order_after == order_of(model[0]) == 4 and radius_of(model[0]) < 1
        assert "unstable and were moved inside the unit circle (spectral radius 1." in report.fallbacks[0]
        assert report.fallbacks[0] in caplog.text
        assert report.hinf_error is not None

    def test_clamp_of_a_layer_that_is_not_cut_is_only_an_analysis(self, kind: str) -> None:
        model = model_of(kind, 1.2)
        before = values(model[0])
        settings = CompressionSettings(criterion=FixedOrder(8), unstable=Unstable.CLAMP)
        report = compress_(model, settings, adapters=ADAPTERS).layers[0]
        assert same(model[0], before) and not report.changed
        assert "the layer keeps its poles" in report.fallbacks[0]
        assert "the layer keeps its poles" in str(analyze(model, settings, adapters=ADAPTERS).layers[0].reason)

    def test_stable_layers_are_cut_the_same_under_each(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        models = {mode: model_of(kind, 0.9) for mode in MODES}
        reports = [compress_(models[m], MODES[m], adapters=ADAPTERS) for m in MODES]
        assert all(same(model, values(models[Unstable.ERROR])) for model in models.values())
        assert all(r.layers[0].fallbacks == reports[0].layers[0].fallbacks for r in reports)
        assert not caplog.text

    @pytest.mark.parametrize("mode", [*Unstable, None])
    def test_in_training(self, kind: str, mode: Unstable | None) -> None:
        model = model_of(kind, 1.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        arguments: dict[str, Any] = {"settings": ERROR if mode is None else MODES[mode], "adapters": ADAPTERS}
        arguments["on_error"] = OnError.RAISE if mode is None else OnError.SKIP
        compressor = InTrainingCompressor(model, optimizer, schedule=At((1, 2)), **arguments)
        optimizer.step()
        if mode is None:
            with pytest.raises(UnstableSystemError):
                compressor.step()
            return
        (event,) = compressor.step()
        assert event.kind == ("skipped" if mode is Unstable.ERROR else "cut")
        wanted = {Unstable.ERROR: [8, 8], Unstable.SKIP: [8, 4], Unstable.CLAMP: [4, 4]}[mode]
        assert [order_of(layer) for layer in model] == wanted
        compressor.step()
        assert [order_of(layer) for layer in model] == wanted


def test_a_layer_that_is_the_model_is_named_by_its_class() -> None:
    with pytest.raises(UnstableSystemError, match=r"^DenseSSM: "):
        compress_(dense(1.2), ERROR)


def test_what_keeps_its_poles_cannot_be_clamped() -> None:
    settings = CompressionSettings(criterion=FixedOrder(4), unstable=Unstable.CLAMP, reducer=ModalTruncation())
    with pytest.raises(UnstableSystemError, match=r"FreePoles under ModalTruncation keeps .*=Unstable\.SKIP"):
        compress_(model_of("diagonal", 1.2), settings, adapters=ADAPTERS)


@pytest.mark.parametrize("layer", [LRU, S4D, DampedLinOSS])
def test_parametrized_poles_at_the_edge_of_the_numbers(layer: type[nn.Module]) -> None:
    """|pole| of these is below 1 by construction; where it rounds to 1 the layer is cut over a finite horizon."""
    torch.manual_seed(0)
    model = layer(3, 8)
    with torch.no_grad():
        for name, value in (("nu_log", -1e4), ("log_A_real", -1e4), ("G", 0.0)):
            if hasattr(model, name):
                getattr(model, name).view(-1)[0] = value
    results = [nn.Sequential(layer(3, 8)) for _ in MODES]
    for result, settings in zip(results, MODES.values(), strict=True):
        result[0].load_state_dict(model.state_dict())
        report = compress_(result, settings)
        assert result[0].order == 4 and not any("moved" in text for text in report.layers[0].fallbacks)
        assert all(torch.isfinite(p).all() for p in result.parameters())
    assert all(same(result, values(results[0])) for result in results)


def poles_of(system: StateSpace) -> Tensor:
    return system.a if system.is_diagonal else torch.linalg.eigvals(system.a)


class TestClamping:
    def test_unstable_poles_move_along_their_rays_and_others_stay(self) -> None:
        sizes, angles = torch.tensor([0.5, 0.999, 1.0, 3.0]).double(), torch.tensor([0.1, 1.0, 2.0, 3.0]).double()
        a = torch.polar(sizes, angles)
        b, c = torch.ones(4, 1, dtype=a.dtype), torch.ones(1, 4, dtype=a.dtype)
        exact = torch.complex(sizes.log(), angles)
        for log_a in (None, exact):
            clamped = clamp_poles(StateSpace(a, b, c, log_a=log_a), 0.05)
            assert (clamped.moved, clamped.poles) == (2, 4) and clamped.radius_before == pytest.approx(3.0)
            torch.testing.assert_close(clamped.system.a[2:], torch.polar(torch.full((2,), 0.95).double(), angles[2:]))
            assert torch.equal(clamped.system.a[:2], a[:2]) and clamped.system.is_stable()
            assert log_a is None or torch.equal(clamped.system.log_a[:2], log_a[:2])
            assert clamped.radius == pytest.approx(0.999)

    def test_dense(self) -> None:
        torch.manual_seed(1)
        matrix = torch.randn(6, 6, dtype=torch.float64)
        system = StateSpace(matrix, torch.ones(6, 1).double(), torch.ones(1, 6).double())
        clamped = clamp_poles(system, 0.05)
        wanted = torch.linalg.eigvals(matrix)
        moved = wanted.abs() >= 1
        assert clamped.moved == int(moved.sum()) > 0 and not clamped.system.a.is_complex()
        wanted = torch.where(moved, 0.95 * wanted / wanted.abs(), wanted)
        assert all((poles_of(clamped.system) - w).abs().min() < 1e-8 for w in wanted)

    def test_without_eigenvectors_all_of_the_matrix_is_scaled(self) -> None:
        jordan = 1.5 * torch.eye(6, dtype=torch.float64) + torch.diag(torch.ones(5).double(), 1)
        clamped = clamp_poles(StateSpace(jordan, torch.ones(6, 1).double(), torch.ones(1, 6).double()), 0.05)
        torch.testing.assert_close(clamped.system.a, jordan * (0.95 / 1.5))
        assert clamped.system.is_stable() and clamped.moved == 6

    def test_systems_of_a_bank_without_unstable_poles_stay_to_the_bit(self) -> None:
        torch.manual_seed(2)
        a = torch.randn(5, 4, 4, dtype=torch.float64)
        a = (
            a
            / torch.linalg.eigvals(a).abs().amax(-1)[:, None, None]
            * torch.tensor([0.5, 1.3, 0.9, 1.0, 2.0])[:, None, None]
        )
        bank = StateSpace(a, torch.ones(5, 4, 1).double(), torch.ones(5, 1, 4).double())
        clamped = clamp_poles(bank, 0.1)
        assert clamped.system.is_stable() and clamped.poles == 20
        for k in (0, 2):
            assert torch.equal(clamped.system.a[k], a[k])
        alone = [clamp_poles(bank[torch.tensor([k])], 0.1).system.a[0] for k in range(5)]
        torch.testing.assert_close(clamped.system.a, torch.stack(alone), rtol=1e-12, atol=1e-12)

    def test_continuous_time_is_refused(self) -> None:
        system = StateSpace(torch.zeros(2), torch.ones(2, 1), torch.ones(1, 2), sampling_time=0)
        with pytest.raises(InvalidSystemError, match="discrete"):
            clamp_poles(system, 0.1)

    @pytest.mark.parametrize("margin", [0, 1, -0.1, float("nan"), True, "x"])
    def test_margins_that_are_none(self, margin: Any) -> None:
        with pytest.raises(ConfigError, match="stability_margin"):
            CompressionSettings(stability_margin=margin)
        with pytest.raises(ConfigError, match="margin"):
            clamp_poles(StateSpace(torch.zeros(2), torch.ones(2, 1), torch.ones(1, 2)), margin)


def test_the_command_line_passes_it_on() -> None:
    from compressm.cli.build import build_settings
    from compressm.cli.parsing import parse_assignments
    from compressm.cli.recipes import resolve
    from compressm.training.presets import preset

    config = resolve(None, None, {}, parse_assignments(["compression.unstable=clamp"]))
    assert build_settings(config.compression, preset("default")).unstable is Unstable.CLAMP


def test_an_average_of_a_clamped_layer_is_stable_too() -> None:
    model = dense(1.2)
    average = torch.optim.swa_utils.AveragedModel(model)
    compress_(model, CLAMP, mirrors=[average])
    assert radius_of(model) < 1 and radius_of(average.module) < 1 and average.module.order == 4
