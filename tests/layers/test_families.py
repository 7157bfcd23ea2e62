"""What every kind of layer has in common, in each of its forms."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from compressm.errors import ConfigError
from compressm.layers import FAMILIES, Bidirectional, LayerKind, ModelConfig, SequenceLayer, SequenceModel
from compressm.layers.layout import Layout


def forms(kind: LayerKind) -> list[dict[str, str]]:
    """Every combination of the settings of a kind that have a list of choices."""
    choices = {name: [m.value for m in enum] for name, enum in FAMILIES[kind].options.items() if enum is not None}
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


CASES = [
    pytest.param(kind, form, id="-".join((kind.value, *form.values()))) for kind in LayerKind for form in forms(kind)
]


def build(kind: LayerKind, form: dict[str, str], width: int = 4, order: int = 6) -> SequenceLayer:
    return FAMILIES[kind].layer(width, order, generator=torch.Generator().manual_seed(0), **form)


def streamed(layer: SequenceLayer, u: torch.Tensor) -> torch.Tensor:
    state, outputs = layer.initial_state(len(u)), []
    for k in range(u.shape[1]):
        y, state = layer.step(u[:, k], state)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("kind", "form"), CASES)
@torch.no_grad()
def test_the_two_forms_agree(kind, form) -> None:
    layer, u = build(kind, form, 3, 16).double(), torch.randn(2, 150, 3, dtype=torch.float64)
    y = layer(u)
    assert y.shape == u.shape
    assert torch.allclose(streamed(layer, u), y, atol=1e-10)
    assert torch.allclose(layer(Layout.CHANNELS.arrange(u)), y, atol=1e-10)
    single = layer.float()(u.float())
    assert torch.allclose(single.double(), y, atol=1e-4 * float(y.abs().max()))
    assert not any(p.is_complex() for p in layer.parameters())


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_every_parameter_gets_a_gradient(kind, form) -> None:
    layer = build(kind, form)
    layer(torch.randn(3, 50, 4)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("kind", "form"), CASES)
@torch.no_grad()
def test_masked_inputs_count_as_zero(kind, form) -> None:
    layer, u = build(kind, form), torch.randn(2, 20, 4)
    mask = torch.arange(20) < torch.tensor([20, 7])[:, None]
    masked = layer(torch.where(mask[..., None], u, torch.nan), mask=mask)
    assert torch.allclose(masked[1, :7], layer(u[1:, :7])[0], atol=1e-5)
    assert torch.equal(masked, layer(torch.where(mask[..., None], u, 0.0)))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_precisions_and_sizes(kind, form) -> None:
    layer, u = build(kind, form), torch.randn(2, 30, 4)
    wanted = layer(u)
    half = layer.to(torch.bfloat16)
    y = half(u.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - wanted).abs().max() <= 0.1 * wanted.abs().max()
    assert half.step(u[:, 0].bfloat16(), half.initial_state(2))[0].dtype == torch.bfloat16
    y.sum().backward()
    empty = build(kind, form, 4, 0)
    assert torch.allclose(empty(u), streamed(empty, u), atol=1e-6)
    assert build(kind, form, 4, 1)(u[:, :1]).shape == (2, 1, 4)
    assert layer.float()(u[:, :0]).shape == (2, 0, 4)
    assert layer(u[:0]).shape == (0, 30, 4)
    for width, order in ((0, 4), (4, -1)):
        with pytest.raises(ConfigError, match="wanted"):
            FAMILIES[kind].layer(width, order, **form)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_the_generator_decides_the_values(kind, form) -> None:
    torch.manual_seed(1)
    one = dict(build(kind, form).named_parameters())
    torch.manual_seed(2)
    two = dict(build(kind, form).named_parameters())
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", list(LayerKind))
def test_a_model_of_each_kind(kind) -> None:
    model = SequenceModel(ModelConfig(layer=kind, order=4, blocks=2, **forms(kind)[-1])).eval()
    x = torch.randn(2, 12, 1)
    state = model.initial_state(2)
    for k in range(12):
        y, state = model.step(x[:, k], state)
    assert torch.allclose(y, model(x), atol=1e-4)
    both = SequenceModel(ModelConfig(layer=kind, order=4, bidirectional=True)).eval()
    assert isinstance(both.blocks[0].ssm, Bidirectional)
    assert both(x).shape == (2, 10)
