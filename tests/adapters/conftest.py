"""An adapter for a layer of the tests' own, and a clean registry for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from compressm.adapters import registry
from compressm.adapters.lru import LRUAdapter


class Other(LRUAdapter):
    """An adapter that differs from the layer's own in its class only."""


@pytest.fixture
def other() -> type[LRUAdapter]:
    return Other


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or installs is forgotten after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_signatures", dict(registry._signatures))
    registry._entry_points.cache_clear()
    registry._load.cache_clear()
    yield
    registry._entry_points.cache_clear()
    registry._load.cache_clear()


@pytest.fixture
def plain() -> type[nn.Module]:
    """A layer class without an adapter."""

    class Plain(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)

    return Plain
