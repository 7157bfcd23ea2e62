"""LRUs of other packages: the real one of LRU-pytorch, and what lru-reduction's holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import compress_
from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_adapter, find_layers
from compressm.adapters.thirdparty.lru import ComplexLRUAdapter
from compressm.errors import AdapterError
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.reducers import SingularPerturbation
from compressm.reduction.result import GramianSource
from compressm.settings import CompressionSettings
from compressm.testing import check_adapter

WHITE = GramianSource.WHITE


def cut_to(order: int, **options: Any) -> CompressionSettings:
    return CompressionSettings(FixedOrder(order), controllability=WHITE, observability=WHITE, **options)


@pytest.fixture(params=["lru_pytorch", "reduction_lru"])
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.getfixturevalue(request.param)


def make(kind: type[nn.Module], inputs: int, outputs: int, order: int) -> nn.Module:
    torch.manual_seed(5)
    layer = kind(inputs, outputs, order)
    with torch.no_grad():  # the package draws radii down to 0; these forget within a few dozen steps
        layer.get_parameter("nu_log").clamp_(-3.0, 1.0)
    return layer


@pytest.mark.parametrize(("inputs", "outputs", "order"), [(1, 1, 6), (3, 5, 8), (4, 2, 9)])
def test_the_laws(kind: type[nn.Module], inputs: int, outputs: int, order: int) -> None:
    check_adapter(lambda: make(kind, inputs, outputs, order))


def test_what_else_carries_the_order_follows(kind: type[nn.Module]) -> None:
    layer = make(kind, 2, 2, 8)
    compress_(layer, cut_to(3))
    assert layer.B.shape == (3, 2) and layer.C.shape == (2, 3)
    for name, wanted in (("state", torch.zeros(3, dtype=torch.complex64)), ("state_features", 3)):
        found = vars(layer).get(name, wanted)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))
    assert layer(torch.randn(2, 5, 2)).isfinite().all()


def test_singular_perturbation_changes_the_full_d(kind: type[nn.Module]) -> None:
    layer = make(kind, 2, 3, 8)
    d = layer.D.detach().clone()
    report = compress_(layer, cut_to(3, reducer=SingularPerturbation(), exact_norms=True))
    assert not torch.equal(layer.D, d)
    assert report.layers[0].hinf_error <= report.layers[0].bound * (1 + 1e-3)


def test_data_and_loss_weigh_the_cut_and_adam_is_carried_over(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3), make(kind, 3, 3, 8), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    u = torch.randn(4, 16, 1)

    def step() -> float:
        loss = (model(u) - u.cumsum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    with Calibration(model) as calibration:
        before = [step() for _ in range(3)][-1]
    report = compress_(model, CompressionSettings(FixedOrder(6)), optimizer=optimizer, calibration=calibration)
    assert (report.layers[0].controllability, report.layers[0].observability) == ("data", "loss")
    assert report.warnings == ()
    b, moments = model[1].B, optimizer.state[model[1].B]
    assert moments["step"] == 3
    assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == b.shape == (6, 3)
    assert moments["exp_avg_sq"].is_complex() and (torch.view_as_real(moments["exp_avg_sq"]) > 0).all()
    after = [step() for _ in range(3)]
    assert after[-1] < 1.2 * before


def test_a_pass_with_a_state_is_refused(reduction_lru: type[nn.Module]) -> None:
    layer = make(reduction_lru, 2, 2, 4)
    with Calibration(layer), pytest.raises(AdapterError, match="called with a state"):
        layer(torch.randn(1, 3, 2), torch.ones(4, dtype=torch.complex64))


class TestSignature:
    def test_a_copy_under_another_name(self, reduction_lru: type[nn.Module]) -> None:
        class Copy(nn.Module):
            __init__ = reduction_lru.__init__  # type: ignore[assignment]
            poles, forward = reduction_lru.poles, reduction_lru.forward  # type: ignore[attr-defined]

        Copy.__init__ = rebuilt(reduction_lru)  # type: ignore[method-assign]
        layer = Copy()
        assert type(find_adapter(layer)) is ComplexLRUAdapter
        compress_(layer, cut_to(2))
        assert layer.state_features == 2

    def test_a_name_goes_before_it(self, reduction_lru: type[nn.Module]) -> None:
        class Mine(ComplexLRUAdapter):
            pass

        mine = Mine()
        assert find_adapter(make(reduction_lru, 2, 2, 4), {reduction_lru: mine}) is mine

    @pytest.mark.parametrize("meaning", ["no gain", "angles", "twice the real part", "late"])
    def test_equal_names_with_another_meaning_are_refused(self, meaning: str, reduction_lru: type[nn.Module]) -> None:
        class Other(nn.Module):
            poles = reduction_lru.poles  # type: ignore[attr-defined]

            def forward(self, input: Tensor) -> Tensor:
                theta = self.theta_log if meaning == "angles" else self.theta_log.exp()
                poles = torch.polar(torch.exp(-self.nu_log.exp()), theta)
                b = self.B if meaning == "no gain" else self.gamma_log.exp()[:, None] * self.B
                x, outputs = torch.zeros_like(self.B[:, 0]), []
                for v in input.unbind(1):
                    before = x
                    x = poles * x + v.to(b.dtype) @ b.mT
                    outputs.append((before if meaning == "late" else x) @ self.C.mT)
                gain = 2 if meaning == "twice the real part" else 1
                return gain * torch.stack([y.expand(len(input), -1) for y in outputs], 1).real + input @ self.D.mT

        Other.__init__ = rebuilt(reduction_lru)  # type: ignore[method-assign]
        layer = Other()
        before = {name: p.clone() for name, p in layer.named_parameters()}
        with pytest.raises(AdapterError, match=r"differs from that of Other's own .*adapters=\{Other: None\}"):
            compress_(nn.Sequential(layer), cut_to(2))
        assert all(torch.equal(before[name], p) for name, p in layer.named_parameters())
        assert find_layers(nn.Sequential(layer), {Other: None}) == []


def rebuilt(kind: type[nn.Module]) -> Any:
    """An `__init__` that takes over all that a layer of `kind` holds."""

    def init(self: nn.Module) -> None:
        nn.Module.__init__(self)
        model = make(kind, 3, 3, 6)
        for name, parameter in model.named_parameters():
            self.register_parameter(name, parameter)
        self.state_features = 6

    return init
