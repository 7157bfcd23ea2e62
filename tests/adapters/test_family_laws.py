"""The eight laws for each kind of layer in each of its forms, and the gradients' maps against the chain rule."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from compressm.adapters.registry import find_adapter
from compressm.layers import FAMILIES, LayerKind
from compressm.surgery.parameters import apply_update
from compressm.testing import check_adapter
from compressm.testing.rewriting import rewrite

KINDS = [
    LayerKind.S5,
    LayerKind.S4D,
    LayerKind.S4,
    LayerKind.DSS,
    LayerKind.LSSL,
    LayerKind.ROTATIONS,
    LayerKind.LINOSS,
    LayerKind.D_LINOSS,
]


def forms(kind: LayerKind) -> list[dict[str, str]]:
    choices = {name: [m.value for m in enum] for name, enum in FAMILIES[kind].options.items() if enum is not None}
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


CASES = [pytest.param(kind, form, id="-".join((kind.value, *form.values()))) for kind in KINDS for form in forms(kind)]


def build(kind: LayerKind, form: dict[str, str], width: int = 3, order: int = 8) -> nn.Module:
    steps = {"dt_min": 0.01, "dt_max": 0.3} if "dt_min" in FAMILIES[kind].options else {}
    layer: nn.Module = FAMILIES[kind].layer(width, order, generator=torch.Generator().manual_seed(3), **steps, **form)
    return layer


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_the_laws(kind, form) -> None:
    check_adapter(lambda: build(kind, form), order=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "order"), [(torch.float64, 2), (torch.float64, 7), (torch.bfloat16, 4)], ids=str)
def test_the_laws_in_other_precisions(kind, dtype, order) -> None:
    check_adapter(lambda: build(kind, forms(kind)[0]).to(dtype), order=order)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_gradients_follow_a_change_of_states(kind, form) -> None:
    """After an exact rewriting in other states, the mapped gradients are those of the rewritten layer."""
    layer, u = build(kind, form).double(), torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1)).double()
    weight = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(2)).double()
    adapter = find_adapter(layer)
    assert adapter is not None

    def gradients() -> dict[str, torch.Tensor]:
        layer.zero_grad()
        (layer(u) * weight).sum().backward()
        return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}

    before = gradients()
    update = adapter.write(layer, rewrite(adapter.read(layer), adapter.form, shared=adapter.selection(layer).shared))
    expected = {name: new for m in update.maps for name, new in (m.covectors(before) or {}).items()}
    apply_update(layer, update)
    after = gradients()
    assert expected
    for name, value in expected.items():
        assert torch.allclose(value, after[name], rtol=1e-8, atol=1e-10 * float(after[name].abs().max())), name
