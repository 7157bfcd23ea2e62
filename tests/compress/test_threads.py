"""What an analysis and a cut find does not depend on the number of threads, but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from threading import get_ident

import pytest
import torch

from compressm.adapters.calibration import Calibration
from compressm.adapters.lru import LRUAdapter
from compressm.compress import analyze, compress_
from compressm.layers import LayerKind, ModelConfig, SequenceModel
from compressm.training.presets import PRESETS


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [LayerKind.LRU, LayerKind.DENSE, LayerKind.S4D], ids=str)
def test_one_model_and_its_captures_give_the_same_orders(kind: LayerKind) -> None:
    """Training itself rounds differently with another number of threads; what is compared starts from one model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig(inputs=2, outputs=5, width=16, order=16, blocks=1, dropout=0.0, layer=kind)
    models = [SequenceModel(config) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = torch.randn(64, 128, 2).cumsum(1) / 5, torch.randint(0, 5, (64,))  # large enough for products in two parts
    captures = []
    for model in models:
        with Calibration(model) as calibration:
            torch.nn.functional.cross_entropy(model(x), y).backward()
        captures.append(calibration)
    found, reports = [], []
    for count, model, calibration in zip((1, 2), models, captures, strict=True):
        torch.set_num_threads(count)
        for name in ("default", "white"):
            found.append(analyze(model, PRESETS[name].settings, calibration=calibration).layers)
        reports.append(compress_(model, PRESETS["default"].settings, calibration=calibration))
    for one, two in zip(found[:2], found[2:], strict=True):
        assert [layer.planned_order for layer in one] == [layer.planned_order for layer in two]
        values = [torch.tensor(layers[0].hankel_singular_values, dtype=torch.float64) for layers in (one, two)]
        assert float((values[0] - values[1]).abs().max() / values[0].max()) < 1e-13
    assert reports[0].changed and reports[0].orders() == reports[1].orders()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_layers_are_run_by_the_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may share submodules, whose mode is set while one of them is verified."""
    torch.set_num_threads(2)
    model = SequenceModel(ModelConfig(inputs=1, outputs=2, width=4, order=8, blocks=2))
    seen, real = list[int](), LRUAdapter.response

    def response(self: LRUAdapter, layer: torch.nn.Module, u: torch.Tensor) -> torch.Tensor:
        seen.append(get_ident())
        return real(self, layer, u)

    monkeypatch.setattr(LRUAdapter, "response", response)
    analyze(model)
    compress_(model)
    assert len(seen) >= 4 and set(seen) == {get_ident()}
