"""`load_state_dict` of a full-size model with the weights of a cut one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import CompressionSettings, FixedOrder, compress_
from compressm.checkpoint.state_dicts import accept_cut_weights, resize_layers_like
from compressm.errors import CheckpointError
from compressm.layers import LRU, ModelConfig, SequenceModel


def model(seed: int = 0, **changes: Any) -> SequenceModel:
    torch.manual_seed(seed)
    return SequenceModel(ModelConfig(**({"inputs": 2, "outputs": 3, "width": 4, "order": 8, "blocks": 2} | changes)))


def cut_state(**changes: Any) -> dict[str, Tensor]:
    cut = model(1, **changes)
    compress_(cut, CompressionSettings(criterion=FixedOrder(3)))
    return cut.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("changes", [{}, {"layer": "dense"}, {"bidirectional": True}])
def test_a_full_size_model_takes_cut_weights_in_place(changes: dict[str, Any]) -> None:
    state, whole = cut_state(**changes), model(**changes)
    optimizer = torch.optim.Adam(whole.parameters())
    with pytest.raises(RuntimeError, match="size mismatch"):
        whole.load_state_dict(state)
    handle = accept_cut_weights(whole)
    parameters = [id(p) for p in whole.parameters()]
    whole.load_state_dict(state)
    assert same(whole.state_dict(), state)
    assert [id(p) for p in whole.parameters()] == parameters
    whole(torch.randn(2, 5, 2)).sum().backward()
    optimizer.step()
    whole.load_state_dict(model(**changes).state_dict())  # and back to full size
    handle.remove()
    with pytest.raises(RuntimeError, match="size mismatch"):
        whole.load_state_dict(state)


def test_inside_a_wrapper_and_in_copies() -> None:
    state, whole = cut_state(), model()
    accept_cut_weights(whole)
    wrapper, average = nn.Sequential(whole), torch.optim.swa_utils.AveragedModel(whole)
    average.load_state_dict({"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}})
    assert same(average.module.state_dict(), state)
    assert whole.blocks[0].ssm.order == 8
    wrapper.load_state_dict({f"0.{k}": v for k, v in state.items()})
    assert same(whole.state_dict(), state)


def test_a_model_that_is_one_layer() -> None:
    small, layer = LRU(width=4, order=3), LRU(width=4, order=8)
    assert resize_layers_like(layer, small.state_dict()) == ("",)
    assert {name for name, p in layer.named_parameters() if not torch.equal(p, small.get_parameter(name))} == {"D"}
    assert resize_layers_like(layer, small.state_dict()) == ()


@pytest.mark.parametrize("damage", ["missing", "dimensions", "head"])
def test_what_does_not_fit_is_told_by_pytorch_and_no_layer_is_resized(damage: str) -> None:
    state, whole = cut_state(), model()
    if damage == "missing":
        del state["blocks.0.ssm.C_re"]
    elif damage == "dimensions":
        state["blocks.0.ssm.C_re"] = state["blocks.0.ssm.C_re"][0]
    else:
        state = {**model().state_dict(), "head.weight": torch.zeros(3, 7)}
    accept_cut_weights(whole)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.ssm|head"):
        whole.load_state_dict(state)
    assert whole.blocks[0].ssm.order == 8


def test_tensors_that_make_no_layer_are_refused_with_all_as_before() -> None:
    state, whole = cut_state(), model()
    state["blocks.1.ssm.C_re"] = torch.zeros(4, 2)  # the other tensors have 3 states
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    accept_cut_weights(whole)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ssm"):
        whole.load_state_dict(state)
    assert same(whole.state_dict(), before)
