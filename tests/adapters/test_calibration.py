"""What the hooks capture, and that nothing else notices them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compressm.adapters.calibration import Calibration
from compressm.errors import InvalidSystemError
from compressm.layers import ModelConfig, SequenceModel
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU


def layer(seed: int = 0, width: int = 3, order: int = 4) -> LRU:
    return LRU(width, order, generator=torch.Generator().manual_seed(seed))


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def only(pairs: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    (pair,) = pairs
    return pair[0]


class Twice(nn.Module):
    """One layer used twice, under activation checkpointing where asked."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.ssm, self.reentrant = layer(), reentrant

    def forward(self, u: Tensor) -> Tensor:
        for _ in range(2):
            u = torch.tanh(
                self.ssm(u) if self.reentrant is None else checkpoint(self.ssm, u, use_reentrant=self.reentrant)
            )
        return u


def test_inputs_and_gradients_are_those_of_the_pass() -> None:
    model, u, g = nn.Sequential(layer()), inputs(2, 5, 3), inputs(2, 5, 3, seed=1)
    with Calibration(model) as calibration:
        (model(u) * g).sum().backward()
    capture = calibration.capture("0")
    assert capture is not None
    assert torch.equal(only(capture.inputs), u) and capture.inputs[0][1] is None
    assert torch.equal(only(capture.gradients), g)
    assert (capture.tokens(), capture.gradient_tokens()) == (10, 10)


def test_captures_are_copies() -> None:
    model, u = nn.Sequential(layer()), inputs(2, 5, 3)
    with Calibration(model, capture_gradients=False) as calibration:
        model(u)
    before = u.clone()
    u.zero_()
    assert torch.equal(only(calibration.capture("0").inputs), before)


def test_the_mask_is_captured_as_an_argument_or_keyword() -> None:
    ssm, u, mask = layer(), inputs(2, 5, 3), torch.ones(2, 5).bool()
    with Calibration(nn.ModuleDict({"ssm": ssm})) as calibration:
        ssm(u, mask).sum().backward()
        ssm(u, mask=mask).sum().backward()
        ssm(u=u, mask=mask).sum().backward()
    capture = calibration.capture("ssm")
    for pairs in (capture.inputs, capture.gradients):
        assert len(pairs) == 3 and all(torch.equal(m, mask) for _, m in pairs)


def test_a_module_used_twice_is_pooled() -> None:
    model = Twice()
    with Calibration(model) as calibration:
        model(inputs(2, 5, 3)).sum().backward()
    capture = calibration.capture("ssm")
    assert (len(capture.inputs), len(capture.gradients)) == (2, 2)
    assert not torch.equal(capture.inputs[0][0], capture.inputs[1][0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("passes", [1, 2])
def test_activation_checkpointing_counts_once(reentrant: bool, passes: int) -> None:
    def captured(model: nn.Module) -> Any:
        with Calibration(model) as calibration:
            for i in range(passes):
                model(inputs(2, 5, 3, seed=i).requires_grad_()).sum().backward()
        return calibration.capture("ssm")

    found, wanted = captured(Twice(reentrant)), captured(Twice())
    for key in ("inputs", "gradients"):
        here, there = getattr(found, key), getattr(wanted, key)
        assert len(here) == len(there) == 2 * passes
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(here, there, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_inputs_count_once_without_gradients(reentrant: bool) -> None:
    model = Twice(reentrant)
    with Calibration(model, capture_gradients=False) as calibration:
        model(inputs(2, 5, 3).requires_grad_()).sum().backward()
    capture = calibration.capture("ssm")
    assert (len(capture.inputs), len(capture.gradients)) == (2, 0)


def test_validation_is_left_out() -> None:
    model = nn.Sequential(layer())
    with Calibration(model) as calibration:
        with torch.no_grad():
            model(inputs(2, 5, 3))
        with torch.inference_mode():
            model(inputs(2, 5, 3))
        model(inputs(2, 5, 3))  # with a graph that nothing runs backward
    assert calibration.capture("0") is None
    with Calibration(model, capture_gradients=False) as calibration, torch.no_grad():
        model(inputs(2, 5, 3))
    assert calibration.capture("0").tokens() == 10


def test_a_frozen_first_layer_is_captured() -> None:
    model = nn.Sequential(layer().requires_grad_(False), layer(1))
    with Calibration(model) as calibration:
        model(inputs(2, 5, 3)).sum().backward()
    first, second = calibration.capture("0"), calibration.capture("1")
    assert (len(first.inputs), len(first.gradients)) == (1, 0)
    assert (len(second.inputs), len(second.gradients)) == (1, 1)


def test_a_pass_run_backward_twice_counts_once() -> None:
    model, u = nn.Sequential(layer()), inputs(2, 5, 3)
    with Calibration(model) as calibration:
        y = model(u)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
    capture = calibration.capture("0")
    assert torch.equal(only(capture.inputs), u)
    assert len(capture.gradients) == 2


def test_the_loss_scale_is_divided_out() -> None:
    model, scale = nn.Sequential(layer()), 2.0**13
    with Calibration(model, grad_scale=lambda: scale) as calibration:
        (model(inputs(2, 5, 3)).sum() * scale).backward()
    assert torch.equal(only(calibration.capture("0").gradients), torch.ones(2, 5, 3))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_are_dropped(value: float) -> None:
    model = nn.Sequential(layer())
    with Calibration(model) as calibration:
        for bad in (True, False):
            y = model(inputs(2, 5, 3))
            (y.flatten()[0] * (value if bad else 1.0)).backward()
    capture = calibration.capture("0")
    assert len(capture.inputs) == 2
    assert bool(only(capture.gradients).isfinite().all())


def test_inputs_that_are_not_finite_are_dropped() -> None:
    model, u = nn.Sequential(layer()), inputs(2, 5, 3)
    u[0, 0, 0] = float("inf")
    with Calibration(model) as calibration:
        model(u)[1].sum().backward()
    assert calibration.capture("0").inputs == []


def test_at_most_so_many_positions_in_whole_sequences() -> None:
    model = nn.Sequential(layer())
    with Calibration(model, max_tokens=23) as calibration:
        for seed in range(3):
            model(inputs(3, 5, 3, seed=seed)).sum().backward()
    capture = calibration.capture("0")
    for pairs in (capture.inputs, capture.gradients):
        assert [tuple(t.shape) for t, _ in pairs] == [(3, 5, 3), (1, 5, 3)]
    assert torch.equal(capture.inputs[1][0], inputs(3, 5, 3, seed=1)[:1])


def test_one_sequence_is_kept_however_long() -> None:
    model = nn.Sequential(layer())
    with Calibration(model, max_tokens=3) as calibration:
        for _ in range(2):
            model(inputs(3, 5, 3)).sum().backward()
    capture = calibration.capture("0")
    assert only(capture.inputs).shape == only(capture.gradients).shape == (1, 5, 3)


def test_masks_are_cut_like_their_inputs() -> None:
    ssm, mask = layer(), torch.tensor([[True] * 5, [False] * 5])
    with Calibration(nn.ModuleDict({"ssm": ssm}), max_tokens=5) as calibration:
        ssm(inputs(2, 5, 3), mask).sum().backward()
    for pairs in (calibration.capture("ssm").inputs, calibration.capture("ssm").gradients):
        assert torch.equal(pairs[0][1], mask[:1])


def test_streaming_steps_are_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    class Flat(LRU):
        def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(u.unsqueeze(0), mask).squeeze(0)

    model = nn.Sequential(Flat(3, 4))
    with Calibration(model) as calibration:
        model(inputs(5, 3))
    assert calibration.capture("0") is None
    assert "0: a pass with an input of shape (5, 3) was not captured" in caplog.text


def test_stop_removes_the_hooks_and_keeps_the_captures() -> None:
    model, calibration = nn.Sequential(layer(), DenseSSM(3, 2)), None
    calibration = Calibration(model)
    assert not calibration.started
    calibration.start()
    calibration.start()
    assert calibration.started and all(len(m._forward_hooks) == 1 for m in model)
    late = model(inputs(2, 5, 3))
    model(inputs(2, 5, 3)).sum().backward()
    calibration.stop()
    assert not calibration.started and not any(m._forward_hooks for m in model)
    late.sum().backward()
    model(inputs(2, 5, 3)).sum().backward()
    assert [len(calibration.capture(name).gradients) for name in ("0", "1")] == [1, 1]
    calibration.clear()
    assert calibration.capture("0") is None


def test_hooks_are_removed_after_an_error() -> None:
    model = nn.Sequential(layer())
    with pytest.raises(InvalidSystemError), Calibration(model):
        model(inputs(2, 5, 7))
    assert not model[0]._forward_hooks


def test_the_state_is_plain_and_returns_exactly() -> None:
    model, mask = nn.ModuleDict({"a": layer(), "b": DenseSSM(3, 2)}), torch.rand(2, 5) > 0.3
    with Calibration(model) as calibration:
        model["b"](model["a"](inputs(2, 5, 3), mask)).square().sum().backward()
    state = calibration.state_dict()

    def leaves(value: Any) -> list[Any]:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return [value] if children is None else [leaf for child in children for leaf in leaves(child)]

    assert all(leaf is None or (type(leaf) is Tensor and not leaf.requires_grad) for leaf in leaves(state))
    other = Calibration(model)
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys() == {"a", "b"}
    for found, wanted in zip(leaves(other.state_dict()), leaves(state), strict=True):
        assert found is wanted is None or (found.dtype == wanted.dtype and torch.equal(found, wanted))
    with other:
        model["a"](inputs(2, 5, 3)).sum().backward()
    assert len(other.capture("a").inputs) == 2 and len(calibration.capture("a").inputs) == 1


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_training_is_the_same_bit_for_bit(reentrant: bool | None) -> None:
    def trained(capture: bool) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        config = ModelConfig(inputs=2, outputs=3, width=4, order=6, blocks=2, dropout=0.3)
        model = SequenceModel(config)
        twice = Twice(reentrant)
        model.add_module("extra", twice)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        calibration = Calibration(model)
        for step in range(4):
            if capture and step in (1, 3):
                calibration.start()
            optimizer.zero_grad()
            x = torch.randn(3, 7, 2)
            loss = model(x).square().sum() + twice(torch.randn(2, 4, 3, requires_grad=True)).square().sum()
            loss.backward()
            optimizer.step()
            calibration.stop()
        assert not capture or len(calibration.state_dict()) == 3
        return [p.detach().clone() for p in model.parameters()], torch.get_rng_state()

    (with_, random_with), (without, random_without) = trained(True), trained(False)
    assert torch.equal(random_with, random_without)
    assert all(torch.equal(a, b) for a, b in zip(with_, without, strict=True))
