"""Replicas that are compiled, through a cut, against the same run uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN: dict[str, Any] = {"steps": 8, "cuts": [4], "orders": [6], "lr": 1e-3}


@pytest.fixture(scope="module")
def plain(launch: Callable[..., list[Any]]) -> dict[str, Any]:
    return launch("run", 2, **RUN)[0]


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_compiled_replicas_are_cut_as_plain_ones(
    launch: Callable[..., list[Any]],
    plain: dict[str, Any],
    where: str,
    assert_same: Callable[[list[dict[str, Any]]], None],
) -> None:
    """`DistributedDataParallel(torch.compile(model))` and `torch.compile(DistributedDataParallel(model))`."""
    results = launch("run", 2, compiled=where, **RUN)
    assert_same(results)
    found = results[0]
    assert found["events"] == plain["events"]
    assert set(found["orders"].values()) == {6}
    torch.testing.assert_close(found["output"], plain["output"], rtol=1e-3, atol=1e-4)
    assert found["values"][0] == pytest.approx(plain["values"][0], rel=1e-3)
