"""Layers made general: the same map, other parameters, and nothing changed where that cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressm.checkpoint import load_checkpoint, save_checkpoint
from compressm.compress import compress_
from compressm.convert import convert_
from compressm.errors import AdapterError
from compressm.layers import DSS, LRU, S4, S4D, S5, Bidirectional, DenseSSM, LinOSS, ModelConfig, SequenceModel
from compressm.reduction.criteria import FixedOrder
from compressm.settings import CompressionSettings


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("settings", [{"layer": "dss"}, {"layer": "dss", "discretization": "softmax"}, {"layer": "s4"}])
@torch.no_grad()
def test_banks_become_s4d(settings) -> None:
    model, x = SequenceModel(ModelConfig(order=8, blocks=2, **settings)).eval(), torch.randn(2, 60, 1)
    wanted, steps = model(x), model.blocks[0].ssm.log_dt.clone()
    assert convert_(model) == ["blocks.0.ssm", "blocks.1.ssm"]
    layer = model.blocks[0].ssm
    assert isinstance(layer, S4D)
    assert not layer.training
    assert torch.equal(layer.log_dt, steps)
    assert torch.allclose(model(x), wanted, atol=1e-4)
    assert convert_(model) == []


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"layer": "dss", "discretization": "softmax", "length": 50, "dt_min": 0.01}, "s4d"),
        ({"layer": "s4", "bidirectional": True}, "s4d"),
        ({"layer": "d-linoss", "r_min": 0.5}, "s5"),
        ({"layer": "linoss", "discretization": "im"}, "s5"),
    ],
)
@torch.no_grad()
def test_a_model_built_from_the_config_takes_the_checkpoint(settings, kind, tmp_path) -> None:
    model, x = SequenceModel(ModelConfig(order=8, blocks=2, **settings)).eval(), torch.randn(2, 60, 1)
    convert_(model)
    assert model.config.layer.value == kind
    compress_(model, CompressionSettings(FixedOrder(5)))
    save_checkpoint(tmp_path / "checkpoint", model)
    again = SequenceModel(ModelConfig.from_dict(model.config.to_dict())).eval()
    load_checkpoint(tmp_path / "checkpoint", again)
    assert torch.equal(again(x), model(x))


def test_a_part_of_the_layers_of_a_sequence_model_is_refused() -> None:
    model = nn.Sequential(SequenceModel(ModelConfig(layer="dss", order=4, blocks=2)))
    before, layer = model[0].config, model[0].blocks[0].ssm
    with pytest.raises(AdapterError, match=r"^0: after converting only some .* Convert all\."):
        convert_(model, ["0.blocks.0.ssm"])
    assert model[0].blocks[0].ssm is layer and model[0].config is before


def test_a_converted_layer_is_balanced() -> None:
    model = nn.Sequential(DSS(3, 12, dt_min=0.01, dt_max=0.3))
    convert_(model)
    report = compress_(model, CompressionSettings(FixedOrder(4)))
    assert report.layers[0].order_after == 4
    assert model(torch.randn(2, 20, 3)).shape == (2, 20, 3)


@torch.no_grad()
def test_one_system_becomes_s5_also_where_it_appears_twice() -> None:
    dense = DenseSSM(3, 6)
    dense.D.copy_(torch.diag(dense.D.diagonal()))
    model, u = nn.Sequential(dense, nn.GELU(), dense, Bidirectional(LRU(3, 4), LRU(3, 4))), torch.randn(2, 40, 3)
    wanted = model(u)
    assert convert_(model) == ["0"]
    assert isinstance(model[0], S5)
    assert model[0] is model[2]
    assert torch.allclose(model(u), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "names", "message"),
    [
        (DSS(2, 4), ["1"], r"no layers \['1'\]; it has \['0'\]"),
        (LRU(2, 4), ["0"], "a general diagonal layer already"),
        (S4(2, 64), None, "in diagonal form its impulse response would differ"),
        (LinOSS(2, 4, discretization="imex"), None, "stores poles inside the unit circle only"),
    ],
)
def test_what_cannot_be_is_refused(layer, names, message) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(AdapterError, match=message):
        convert_(model, names)
    assert model[0] is layer


def test_a_full_feedthrough_and_a_bare_layer_are_refused() -> None:
    dense = DenseSSM(2, 4)
    with torch.no_grad():
        dense.D.fill_(1.0)
    with pytest.raises(AdapterError, match="its D is a full matrix"):
        convert_(nn.Sequential(dense))
    with pytest.raises(AdapterError, match="wrap it in a module"):
        convert_(DSS(2, 4))
