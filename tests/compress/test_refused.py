"""A cut is made whole or not at all: what is refused leaves model and optimizer bit for bit as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from compressm.adapters.dense import DenseAdapter
from compressm.adapters.lru import LRUAdapter
from compressm.compress import analyze, compress_
from compressm.errors import (
    AdapterError,
    CompressmError,
    InvalidSystemError,
    SurgeryError,
    TiedParametersError,
    UnstableSystemError,
    UnsupportedReductionError,
)
from compressm.layers import FAMILIES, LayerKind
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.keeping import BalancedSelection
from compressm.reduction.reducers import SingularPerturbation
from compressm.reduction.selection import ModalTruncation
from compressm.settings import CompressionSettings


@pytest.fixture
def trained(make: Any) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Two layers with an optimizer that has state, and gradients in place."""
    model = nn.Sequential(make(), nn.Tanh(), make(DenseSSM, order=8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.randn(2, 9, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def nan_weight(layer: DenseSSM) -> None:
    layer.B.view(-1)[3] = float("nan")


def unstable(layer: DenseSSM) -> None:
    layer.A.mul_(1.2)


def slightly_unstable(layer: DenseSSM) -> None:
    layer.A.copy_(torch.eye(8) * 1.001)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(nan_weight, InvalidSystemError), (unstable, UnstableSystemError), (slightly_unstable, CompressmError)],
)
def test_an_error_in_the_second_layer(
    spoil: Any, error: type[CompressmError], trained: Any, state_of: Any, unchanged: Any
) -> None:
    model, optimizer = trained
    with torch.no_grad():
        spoil(model[2])
    before = state_of(model, optimizer)
    with pytest.raises(error, match=r"^2: "):
        compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer)
    assert unchanged(before, state_of(model, optimizer))


class Misdeclared(DenseAdapter):
    def write(self, layer: nn.Module, reduction: Any) -> Any:
        return replace(super().write(layer, reduction), order=7)


class Raising(DenseAdapter):
    def write(self, layer: nn.Module, reduction: Any) -> Any:
        raise AdapterError("no room")


class Misplaced(DenseAdapter):
    def write(self, layer: nn.Module, reduction: Any) -> Any:
        update = super().write(layer, reduction)
        return replace(update, tensors={**update.tensors, "E": update.tensors["A"]})


class Infinite(DenseAdapter):
    def write(self, layer: nn.Module, reduction: Any) -> Any:
        update = super().write(layer, reduction)
        return replace(update, tensors={**update.tensors, "D": torch.full((3, 3), float("inf"))})


class MisreadAfterwards(DenseAdapter):
    def read(self, layer: nn.Module) -> Any:
        system = super().read(layer)
        return system if system.order == 8 else replace(system, b=2 * system.b)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (Misdeclared, "2: the adapter's update declares the order 7, but 4 is read back"),
        (Raising, "no room"),
        (Misplaced, "'E' is not a parameter"),
        (Infinite, "'D': the new value is not finite"),
        (MisreadAfterwards, "2: MisreadAfterwards read a system whose output differs"),
    ],
)
def test_an_adapter_that_fails_at_the_second_layer(
    adapter: type[DenseAdapter], said: str, trained: Any, state_of: Any, unchanged: Any
) -> None:
    model, optimizer = trained
    before = state_of(model, optimizer)
    with pytest.raises(CompressmError) as caught:
        compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer, adapters={DenseSSM: adapter()})
    assert said in str(caught.value)
    assert unchanged(before, state_of(model, optimizer))


def test_an_interrupt_after_the_swap_undoes_it(
    trained: Any, state_of: Any, unchanged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model, optimizer = trained
    before = state_of(model, optimizer)
    monkeypatch.setattr("compressm.analysis.accounts.h2_error_and_norm", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer)
    assert unchanged(before, state_of(model, optimizer))


def test_training_goes_on_after_a_refused_cut(trained: Any) -> None:
    model, optimizer = trained
    with pytest.raises(CompressmError):
        compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer, adapters={DenseSSM: Raising()})
    model(torch.randn(2, 9, 3, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer).orders() == {"0": 4, "2": 4}


def test_rounding_to_bfloat16_that_is_unstable(state_of: Any, unchanged: Any) -> None:
    generator = torch.Generator().manual_seed(11)
    layer = DenseSSM(3, 12, r_min=0.99, r_max=0.9999, generator=generator).bfloat16()
    model = nn.Sequential(LRU(3, 12).bfloat16(), layer)
    before = state_of(model)
    with pytest.raises(UnstableSystemError, match=r"^1: .*rounding to torch\.bfloat16 .*Keep this layer's"):
        compress_(model, CompressionSettings(FixedOrder(6)))
    assert unchanged(before, state_of(model))
    compress_(model.double(), CompressionSettings(FixedOrder(6)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_layers_are_cut_and_stay_stable(dtype: torch.dtype, calibrate: Any) -> None:
    for seed in range(4):
        layer = LRU(3, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)
        model = nn.Sequential(layer)
        settings = CompressionSettings(FixedOrder(8))
        report = compress_(model, settings, calibration=calibrate(model, seed=seed)).layers[0]
        assert report.order_after == layer.order == 8 and layer.nu_log.dtype is dtype
        assert LRUAdapter().read(layer).is_stable()
        assert bool(layer(torch.randn(2, 20, 3, dtype=dtype)).isfinite().all())


def test_singular_perturbation_of_a_diagonal_d(make: Any, state_of: Any, unchanged: Any) -> None:
    model = nn.Sequential(make(DenseSSM), make())
    before = state_of(model)
    with pytest.raises(UnsupportedReductionError, match=r"^1: SingularPerturbation changes D .* its D is diagonal"):
        compress_(model, CompressionSettings(FixedOrder(4), reducer=SingularPerturbation()))
    with pytest.raises(UnsupportedReductionError, match=r"^0: ModalTruncation keeps states of a diagonal system"):
        compress_(model, CompressionSettings(FixedOrder(4), reducer=ModalTruncation()))
    assert unchanged(before, state_of(model))


@pytest.mark.parametrize("kind", [LayerKind.DENSE, LayerKind.LSSL, LayerKind.S4])
@pytest.mark.parametrize("reducer", [BalancedSelection(), BalancedSelection(refit=False), ModalTruncation()])
def test_a_choice_of_states_that_act_on_each_other(
    kind: LayerKind, reducer: Any, state_of: Any, unchanged: Any
) -> None:
    model = nn.Sequential(FAMILIES[kind].layer(3, 8))
    before, settings = state_of(model), CompressionSettings(FixedOrder(4), reducer=reducer)
    for verb in (analyze, compress_):
        with pytest.raises(
            UnsupportedReductionError, match=rf"^0: {type(reducer).__name__} keeps states of a diagonal"
        ):
            verb(model, settings)
    assert unchanged(before, state_of(model))


def test_one_shared_parameter(make: Any, state_of: Any, unchanged: Any) -> None:
    model = nn.Sequential(make(), make(seed=1))
    model[1].C_re = model[0].C_re
    before = state_of(model)
    with pytest.raises(TiedParametersError, match=r"'C_re' of the layer '0' is .* 'C_re' of '1' \(LRU\)"):
        compress_(model, CompressionSettings(FixedOrder(4)))
    assert unchanged(before, state_of(model))
    assert not compress_(model, CompressionSettings(FixedOrder(16))).changed


def test_a_shared_parameter_that_a_cut_leaves_alone(make: Any) -> None:
    model = nn.Sequential(make(), make(seed=1))
    model[1].D = model[0].D
    assert compress_(model, CompressionSettings(FixedOrder(4))).orders() == {"0": 4, "1": 4}
    assert model[0].D is model[1].D


def test_a_parameter_shared_with_another_kind_of_module(make: Any, state_of: Any, unchanged: Any) -> None:
    head = nn.Linear(3, 16, dtype=torch.float64)
    model = nn.Sequential(make(), head)
    head.weight = model[0].B_re
    before = state_of(model)
    with pytest.raises(TiedParametersError, match=r"'B_re' of the layer '0' is .* 'weight' of '1' \(Linear\)"):
        compress_(model, CompressionSettings(FixedOrder(4)))
    assert unchanged(before, state_of(model))


def test_inference_mode(make: Any, state_of: Any, unchanged: Any) -> None:
    model = nn.Sequential(make())
    before = state_of(model)
    with torch.inference_mode(), pytest.raises(SurgeryError, match=r"inside torch\.inference_mode\(\); cut after"):
        compress_(model, CompressionSettings(FixedOrder(4)))
    assert unchanged(before, state_of(model))
    with torch.inference_mode():
        born = nn.Sequential(make())
    with pytest.raises(
        SurgeryError, match=r"'[A-Za-z_]+' was made in torch\.inference_mode\(\); make or load the model"
    ):
        compress_(born, CompressionSettings(FixedOrder(4)))
    with torch.no_grad():
        assert compress_(model, CompressionSettings(FixedOrder(4))).changed


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(make: Any, state_of: Any, unchanged: Any) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(make()))
    before = state_of(model)
    with pytest.raises(SurgeryError, match=r"DistributedDataParallel\. Remedy: cut `model\.module` on every process"):
        compress_(model, CompressionSettings(FixedOrder(4)))
    assert unchanged(before, state_of(model))


def test_an_old_graph_cannot_be_run_backward(make: Any) -> None:
    model = nn.Sequential(make())
    loss = model(torch.randn(2, 9, 3, dtype=torch.float64)).square().sum()
    compress_(model, CompressionSettings(FixedOrder(4)))
    with pytest.raises(RuntimeError):
        loss.backward()


def test_a_layer_that_is_the_model_is_named_by_its_class() -> None:
    layer = DenseSSM(3, 8)
    with torch.no_grad():
        layer.A.mul_(1e3)
    with pytest.raises(UnstableSystemError, match=r"^DenseSSM: "):
        compress_(layer)
