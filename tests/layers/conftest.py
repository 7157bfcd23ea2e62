from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def resize() -> Callable[[torch.nn.Module, int], None]:
    """Keep the first states of an LRU or dense layer, in place, as surgery does."""

    def cut(layer: torch.nn.Module, order: int) -> None:
        def take(name: str, value: Tensor) -> Tensor:
            if name == "D":
                return value
            rows = name not in ("C_re", "C_im", "C")
            value = value[:order] if rows else value[:, :order]
            return value[:, :order] if name == "A" else value

        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.set_(take(name, parameter).clone().contiguous())

    return cut
