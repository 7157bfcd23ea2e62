"""Many processes give what one process gives, and all of them the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Launch = Callable[..., list[Any]]
Compare = Callable[[list[dict[str, Any]]], None]

pytestmark = pytest.mark.timeout(600)  # processes that share two cores with others

CUTS = {"cuts": [20, 50, 90, 140], "orders": [10, 8, 6, 4]}


def largest(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float((a["output"] - b["output"]).abs().max())


def mean_losses(results: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([r["losses"] for r in results], dtype=torch.float64).mean(0)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_classical_cuts_in_double_precision_are_those_of_one_process(
    launch: Launch, size: int, assert_same: Compare
) -> None:
    job = {**CUTS, "steps": 200, "settings": "white", "dtype": "float64"}
    (one,), many = launch("run", 1, **job), launch("run", size, **job)
    assert_same(many)
    assert many[0]["orders"] == one["orders"] == dict.fromkeys(one["orders"], 4)
    assert float((mean_losses(many) - mean_losses([one])).abs().max()) < 1e-11
    assert largest(one, many[0]) < 1e-10


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_cuts_weighted_by_all_processes_data_are_those_of_one_process(
    launch: Launch, size: int, assert_same: Compare
) -> None:
    job = {**CUTS, "steps": 160}
    (one,), many = launch("run", 1, **job), launch("run", size, **job)
    assert_same(many)
    for a, b in zip(one["values"][:2], many[0]["values"][:2], strict=True):  # those of the first cut
        assert a == pytest.approx(b, rel=1e-4)
    assert float((mean_losses(many) - mean_losses([one])).abs().max()) < 1e-4
    assert largest(one, many[0]) < 1e-3


def test_cuts_are_fitted_to_the_inputs_of_all_processes(launch: Launch, assert_same: Compare) -> None:
    job = {"cuts": [4, 8], "orders": [6, 3], "steps": 12, "dtype": "float64", "refit": True}
    (one,), many, (first,) = launch("run", 1, **job), launch("run", 2, **job), launch("run", 1, **job, every=2)
    assert_same(many)
    fits = torch.tensor(one["fits"], dtype=torch.float64)  # of two layers in each of two cuts
    assert fits.shape == (4, 2) and bool((fits[:, 1] < fits[:, 0]).all())
    # The fit looks at inputs in single precision, so that agreement ends where that does.
    torch.testing.assert_close(torch.tensor(many[0]["fits"], dtype=torch.float64), fits, rtol=1e-4, atol=1e-6)
    assert largest(one, many[0]) < 1e-4 * float(one["output"].abs().max())
    assert abs(first["fits"][0][0] - one["fits"][0][0]) > 1e-3 * one["fits"][0][0]  # rank 0's sequences alone


def test_options_and_hooks_of_the_wrapper_survive_cuts(launch: Launch, assert_same: Compare) -> None:
    options = {"gradient_as_bucket_view": True, "find_unused_parameters": True, "bucket_cap_mb": 1}
    many = launch("with_hooks", 2, steps=9, cuts=[2, 4, 6], orders=[10, 8, 6], ddp=options)
    assert_same(many)
    for each in many:
        assert each["orders"] == dict.fromkeys(each["orders"], 6)
        assert each["same"] and each["attribute"] == "own" and each["training"]
        assert each["find_unused_parameters"] and each["gradient_as_bucket_view"]
        assert each["seen"]["forward"] == 9
        assert all(b > a for a, b in zip(each["buckets"], each["buckets"][1:], strict=False))  # the hook runs each step


def test_a_static_graph_survives_cuts(launch: Launch, assert_same: Compare) -> None:
    many = launch("with_hooks", 2, steps=6, cuts=[2, 4], orders=[10, 8], ddp={"static_graph": True})
    assert_same(many)
    assert all(each["static"] and each["steps"] == 6 for each in many)
