from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from compressm.errors import ConfigError, StaleModelError
from compressm.layers import (
    LRU,
    DiagonalBank,
    LayerKind,
    ModelConfig,
    NormKind,
    SequenceModel,
    Streamer,
    Task,
)
from compressm.layers.base import SequenceLayer
from compressm.layers.streaming.program import prepare
from compressm.ops import kernels_run, use_kernels

SMALL: dict[str, Any] = {"inputs": 2, "outputs": 3, "width": 6, "order": 8, "blocks": 2}
KINDS = [
    *[{"layer": kind} for kind in LayerKind],
    {"norm": NormKind.LAYER},
    {"norm": NormKind.NONE},
    {"task": Task.SEQUENCE},
    {"vocabulary": 11},
    {"layer": LayerKind.DENSE, "norm": NormKind.LAYER, "task": Task.SEQUENCE, "vocabulary": 11},
    {"width": 7, "order": 5, "blocks": 1},
    {"order": 0},
    {"layer": LayerKind.DENSE, "order": 0},
    {"blocks": 0},
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def build(dtype: torch.dtype = torch.float32, **settings: Any) -> SequenceModel:
    """A model in evaluation whose norms are not the identity."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(**{**SMALL, **settings})).to(dtype)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 2)
            elif name.endswith("bias"):
                tensor.normal_()
    return model.eval()


def sequences(model: SequenceModel, batch: int, length: int) -> Tensor:
    if model.config.vocabulary is not None:
        return torch.randint(model.config.vocabulary, (batch, length))
    return torch.randn(batch, length, model.config.inputs, dtype=model.head.weight.dtype)


def error(streamer: Streamer, model: SequenceModel, x: Tensor) -> float:
    """The largest difference from `forward`: at every step of a sequence task, else after the last."""
    outputs = [streamer.step(x[:, k]) for k in range(x.shape[1])]
    with torch.no_grad():
        wanted = model(x)
    got = torch.stack(outputs, 1) if model.config.task is Task.SEQUENCE else outputs[-1]
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))


class Plain(SequenceLayer):
    """A layer without the form that streaming prepares."""

    def __init__(self, width: int, order: int) -> None:
        super().__init__()
        self.inner = LRU(width, order)

    @property
    def width(self) -> int:
        return self.inner.width

    @property
    def order(self) -> int:
        return self.inner.order

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(u, mask)

    def initial_state(self, batch: int) -> Tensor:
        return self.inner.initial_state(batch)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.step(u, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", KINDS)
def test_it_agrees_with_forward(settings, batch, dtype) -> None:
    model = build(dtype, **settings)
    streamer = Streamer(model, batch)
    x = sequences(model, batch, 60)
    for _ in range(2):
        assert error(streamer, model, x) <= TOLERANCE[dtype]
        streamer.reset()


@pytest.mark.parametrize("norm", list(NormKind))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_without_a_system_runs_by_its_own_step(norm, batch) -> None:
    model = build(torch.float64, norm=norm)
    model.blocks[1].ssm = Plain(6, 4).double()
    assert error(Streamer(model.eval(), batch), model, sequences(model, batch, 40)) <= 1e-12


@pytest.fixture
def without_kernels() -> Iterator[None]:
    before = use_kernels(False)
    yield
    use_kernels(before)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("settings", KINDS)
def test_it_agrees_with_forward_without_kernels(settings) -> None:
    model = build(**settings)
    assert error(Streamer(model), model, sequences(model, 1, 60)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("layer", [LayerKind.LRU, LayerKind.DENSE])
def test_a_step_is_one_compiled_call(layer) -> None:
    if not kernels_run():
        pytest.skip("numba is not installed")
    program = prepare(build(layer=layer, task=Task.SEQUENCE), batch=1)
    assert len(program.calls) == 1
    assert len(program.head) == 1


def test_a_streamer_keeps_what_it_was_prepared_with() -> None:
    """Wanting kernels or not afterwards changes nothing until `refresh`."""
    model = build(task=Task.SEQUENCE)
    x = sequences(model, 1, 20)
    one, two = Streamer(model), Streamer(model)
    before = use_kernels(False)
    try:
        assert all(torch.equal(one.step(x[:, k]), two.step(x[:, k])) for k in range(10))
        two.refresh()
        two.load(one.state())
        assert all(torch.allclose(one.step(x[:, k]), two.step(x[:, k]), atol=1e-5) for k in range(10, 20))
    finally:
        use_kernels(before)


def test_a_classifier_gives_the_scores_of_each_prefix() -> None:
    model = build(torch.float64)
    streamer, x = Streamer(model), sequences(model, 1, 20)
    for k in range(20):
        scores = streamer.step(x[:, k])
        assert torch.allclose(scores, model(x[:, : k + 1]), atol=1e-12)


@pytest.mark.parametrize("kernels", [True, False])
def test_wide_float32_over_a_long_sequence(kernels, request) -> None:
    if not kernels:
        request.getfixturevalue("without_kernels")
    model = build(width=48, order=40, blocks=3, task=Task.SEQUENCE)
    assert error(Streamer(model), model, sequences(model, 1, 500)) <= 1e-5


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_an_s4_layer_that_has_become_diagonal(batch) -> None:
    model = build(torch.float64, layer=LayerKind.S4)
    for block in model.blocks:
        for parameter in (block.ssm.P_re, block.ssm.P_im):
            parameter.set_(parameter[:0].clone())
    assert isinstance(model.blocks[0].ssm.system(), DiagonalBank)
    assert error(Streamer(model, batch), model, sequences(model, batch, 60)) <= 1e-12


@pytest.mark.parametrize("kind", [LayerKind.S4, LayerKind.S4D, LayerKind.LSSL])
@torch.no_grad()
def test_states_of_banks_are_those_of_the_model(kind) -> None:
    model = build(torch.float64, layer=kind)
    streamer, x, state = Streamer(model, 2), sequences(model, 2, 10), model.initial_state(2)
    for k in range(10):
        _, state = model.step(x[:, k], state)
        streamer.step(x[:, k])
    for mine, theirs in zip(streamer.state().blocks, state.blocks, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)
    streamer.load(state)
    assert torch.allclose(streamer.step(x[:, 0]), model.step(x[:, 0], state)[0], atol=1e-11)


def test_layers_of_different_orders_after_a_cut(resize) -> None:
    model = build(torch.float64)
    for block, order in zip(model.blocks, (3, 5), strict=True):
        resize(block.ssm, order)
    streamer = Streamer(model, 2)
    assert [tuple(s.shape) for s in streamer.state().blocks] == [(2, 3, 2), (2, 5, 2)]
    assert error(streamer, model, sequences(model, 2, 40)) <= 1e-12


@pytest.mark.parametrize("settings", [{}, {"layer": LayerKind.DENSE, "norm": NormKind.LAYER}])
@torch.no_grad()
def test_the_state_goes_to_another_streamer_and_to_the_model_and_back(settings) -> None:
    model = build(torch.float64, **settings)
    x = sequences(model, 2, 30)
    one, two = Streamer(model, 2), Streamer(model, 2)
    for k in range(10):
        one.step(x[:, k])
    state = one.state()
    two.load(state)
    for k in range(10, 20):
        by_model, state = model.step(x[:, k], state)
        assert torch.allclose(two.step(x[:, k]), by_model, atol=1e-12)
    one.load(state)
    for k in range(20, 30):
        last = one.step(x[:, k])
    assert torch.allclose(last, model(x), atol=1e-12)


def test_a_copy_of_the_state_and_the_scores_stay_as_they_were() -> None:
    model = build()
    streamer, x = Streamer(model), sequences(model, 1, 2)
    scores = streamer.step(x[:, 0])
    state = streamer.state()
    before = [t.clone() for t in (scores, *state.blocks, state.total)]
    streamer.step(x[:, 1])
    assert all(torch.equal(a, b) for a, b in zip(before, (scores, *state.blocks, state.total), strict=True))
    assert state.steps == 1


def test_scores_can_enter_a_graph() -> None:
    model = build()
    weight = torch.ones(3, requires_grad=True)
    (Streamer(model).step(sequences(model, 1, 1)[:, 0]) * weight).sum().backward()
    assert weight.grad is not None


def optimizer_step(model: SequenceModel) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(sequences(model, 2, 5)).sum().backward()
    optimizer.step()


def running_statistics(model: SequenceModel) -> None:
    model.train()
    model(sequences(model, 2, 5))
    model.eval()


@pytest.mark.parametrize(
    "change",
    [
        optimizer_step,
        running_statistics,
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.blocks[0].ssm.D.detach().zero_(),
    ],
)
def test_a_changed_model_is_noticed_by_the_next_step(change) -> None:
    model = build()
    streamer, x = Streamer(model), sequences(model, 1, 30)
    streamer.step(x[:, 0])
    change(model)
    with pytest.raises(StaleModelError, match=r"refresh\(\)"):
        streamer.step(x[:, 1])
    streamer.refresh()
    assert error(streamer, model, x) <= 1e-5


def test_a_cut_is_noticed_by_the_next_step(resize) -> None:
    model = build()
    streamer, x = Streamer(model), sequences(model, 1, 30)
    streamer.step(x[:, 0])
    resize(model.blocks[0].ssm, 4)
    with pytest.raises(StaleModelError, match=r"'blocks\.0\.ssm\.\w+' and 7 more"):
        streamer.step(x[:, 1])
    streamer.refresh()
    assert error(streamer, model, x) <= 1e-5


def test_replaced_parameters_are_noticed_by_reset_and_load() -> None:
    model = build()
    streamer = Streamer(model)
    state = streamer.state()
    model.blocks[0].ssm.D = torch.nn.Parameter(torch.zeros(6))
    for call in (streamer.reset, lambda: streamer.load(state)):
        with pytest.raises(StaleModelError, match=r"'blocks\.0\.ssm\.D'"):
            call()
    streamer.refresh()
    model.double()
    with pytest.raises(StaleModelError):
        streamer.reset()


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(ConfigError, match="bidirectional"):
        Streamer(build(bidirectional=True))
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        Streamer(build().train())
    with pytest.raises(ConfigError, match=r"bfloat16; a Streamer wants all float32 or all float64"):
        Streamer(build(torch.bfloat16))
    for batch in (0, True, 1.0):
        with pytest.raises(ConfigError, match="batch is"):
            Streamer(build(), batch)  # type: ignore[arg-type]


def test_bad_input_leaves_the_state_as_it_was() -> None:
    model = build()
    streamer, x = Streamer(model, 2), sequences(model, 2, 30)
    streamer.step(x[:, 0])
    with pytest.raises(ConfigError, match=r"shape \(1, 2\); wanted \(2, 2\)"):
        streamer.step(x[:1, 1])
    with pytest.raises(ConfigError, match="tensors of shapes"):
        streamer.load(Streamer(model, 1).state())
    for k in range(1, 30):
        last = streamer.step(x[:, k])
    assert torch.allclose(last, model(x), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", [LayerKind.LRU, LayerKind.DENSE, LayerKind.S4D])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("kernels", [True, False])
@torch.no_grad()
def test_numbers_that_are_not_finite_pass_through_and_reset_forgets_them(kind, batch, bad, kernels, request) -> None:
    if not kernels:
        request.getfixturevalue("without_kernels")
    model = build(layer=kind)
    streamer, x = Streamer(model, batch), sequences(model, batch, 30)
    spoilt = torch.full((batch, 2), bad)
    wanted, _ = model.step(spoilt, model.initial_state(batch))
    assert torch.equal(streamer.step(spoilt).isfinite(), wanted.isfinite())
    streamer.reset()
    assert error(streamer, model, x) <= 1e-5


def test_tokens_outside_the_vocabulary_leave_the_state_as_it_was() -> None:
    model = build(vocabulary=5)
    streamer = Streamer(model)
    with pytest.raises(IndexError):
        streamer.step(torch.tensor([5]))
    assert all(bool((t == 0).all()) for t in (*streamer.state().blocks, streamer.state().total))
    assert streamer.state().steps == 0


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = build()
        x = sequences(model, 1, 20)
        streamer = Streamer(model)
        streamer.reset()
        assert error(streamer, model, x) <= 1e-5
