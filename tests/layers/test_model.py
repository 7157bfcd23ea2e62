from __future__ import annotations

from typing import Any

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import Block, LayerKind, ModelConfig, NormKind, SequenceModel, Task

SMALL: dict[str, Any] = {"inputs": 2, "outputs": 3, "width": 6, "order": 8, "blocks": 2}
KINDS = [
    {"layer": LayerKind.LRU},
    {"layer": LayerKind.DENSE},
    {"norm": NormKind.LAYER},
    {"norm": NormKind.NONE},
    {"task": Task.SEQUENCE},
    {"vocabulary": 11},
    {"layer": LayerKind.DENSE, "task": Task.SEQUENCE, "vocabulary": 11},
    {"width": 96, "order": 4, "blocks": 1},  # wide: the chunked form
]


def build(**settings: Any) -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(**{**SMALL, **settings}))
    for block in model.blocks:
        if isinstance(block.norm, torch.nn.Module) and hasattr(block.norm, "running_mean"):
            block.norm.running_mean.normal_()
            block.norm.running_var.uniform_(0.5, 2)
    return model


def sequences(model: SequenceModel, batch: int, length: int) -> torch.Tensor:
    if model.config.vocabulary is not None:
        return torch.randint(model.config.vocabulary, (batch, length))
    return torch.randn(batch, length, model.config.inputs)


@pytest.mark.parametrize("settings", KINDS)
@torch.no_grad()
def test_stepping_agrees_with_forward(settings) -> None:
    model = build(**settings).eval()
    x = sequences(model, 3, 60)
    state, outputs = model.initial_state(3), []
    for k in range(60):
        y, state = model.step(x[:, k], state)
        outputs.append(y)
    wanted = model(x)
    got = torch.stack(outputs, 1) if model.config.task is Task.SEQUENCE else outputs[-1]
    assert (got - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("settings", KINDS)
@torch.no_grad()
def test_a_ragged_batch_gives_what_each_sequence_alone_gives(settings, bidirectional) -> None:
    model = build(**settings, bidirectional=bidirectional).eval()
    x, lengths = sequences(model, 4, 40), torch.tensor([40, 1, 13, 27])
    together = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model(x[row : row + 1, :length])[0]
        got = together[row, :length] if model.config.task is Task.SEQUENCE else together[row]
        assert (got - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rubbish", [-50.0, float("nan"), float("inf")])
def test_padding_changes_nothing_in_training(bidirectional, rubbish) -> None:
    """Scores, gradients and running statistics are those of the same batch with other padding."""
    lengths = torch.tensor([20, 5, 11])
    mask = torch.arange(20) < lengths[:, None]
    x = torch.randn(3, 20, 2)
    longer = torch.cat([torch.where(mask[..., None], x, 50.0), torch.full((3, 7, 2), rubbish)], dim=1)
    results = []
    for padded in (x, longer):
        model = build(dropout=0.0, bidirectional=bidirectional)
        scores = model(padded, lengths)
        scores.square().sum().backward()
        results.append((scores, [p.grad for p in model.parameters()], list(model.buffers())))
    (one, one_grads, one_buffers), (two, two_grads, two_buffers) = results
    assert torch.allclose(one, two, atol=1e-5)
    for a, b in zip(one_grads + one_buffers, two_grads + two_buffers, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(a.abs().max())))


@torch.no_grad()
def test_padded_tokens_need_not_be_in_the_vocabulary() -> None:
    model = build(vocabulary=5).eval()
    tokens = torch.tensor([[1, 4, -100, 99]])
    assert torch.allclose(model(tokens, torch.tensor([2])), model(tokens[:, :2]), atol=1e-6)


@torch.no_grad()
def test_bidirectional_sees_the_future_and_causal_does_not() -> None:
    for bidirectional in (False, True):
        model = build(task=Task.SEQUENCE, bidirectional=bidirectional).eval()
        x = torch.randn(1, 20, 2)
        changed = x.clone()
        changed[:, 15] += 1
        difference = (model(x) - model(changed))[0, :15].abs().max()
        assert (difference > 1e-4) if bidirectional else (difference < 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (2, 0)])
def test_extreme_shapes(shape) -> None:
    model = build()
    y = model(torch.randn(*shape, 2))
    assert y.shape == (shape[0], 3)
    assert torch.isfinite(y).all()
    y.sum().backward()


@torch.no_grad()
def test_a_sequence_of_length_zero_is_finite() -> None:
    model = build().eval()
    y = model(torch.randn(2, 6, 2), torch.tensor([6, 0]))
    assert torch.allclose(y[1], model.head.bias)


def test_it_learns() -> None:
    """Tell the signs of two channels' means apart: the loss falls by a factor of five."""
    model = build(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = torch.arange(3).repeat(8)
    offsets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])[labels]
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(offsets[:, None] + torch.randn(24, 20, 2)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_streaming_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(ConfigError, match="bidirectional"):
        build(bidirectional=True).eval().initial_state(1)
    model = build()
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        model.step(torch.zeros(1, 2), model.initial_state(1))


@torch.no_grad()
def test_streaming_agrees_after_a_cut(resize) -> None:
    model = build().eval()
    for block, order in zip(model.blocks, (3, 5), strict=True):
        assert isinstance(block, Block)
        resize(block.ssm, order)
    x = torch.randn(2, 30, 2)
    state = model.initial_state(2)
    for k in range(30):
        y, state = model.step(x[:, k], state)
    assert (y - model(x)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3], r"shape \(1,\); wanted one length a sequence, \(2,\)"),
        ([3, 9], "between 3 and 9"),
        ([-1, 2], "between -1"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build()(torch.randn(2, 5, 2), torch.tensor(lengths))
