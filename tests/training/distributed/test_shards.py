"""A model under fully_shard is cut as on one process, and sharded again as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Launch = Callable[..., list[Any]]
Compare = Callable[[list[dict[str, Any]]], None]

pytestmark = pytest.mark.timeout(600)  # processes that share two cores with others

FILE = "shard_workers.py"
BLOCKS = ["blocks.0", "blocks.1", ""]
LAYERS = ["blocks.0.ssm", "blocks.0", "blocks.1.ssm", ""]


def mean_losses(results: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([r["losses"] for r in results], dtype=torch.float64).mean(0)


@pytest.mark.parametrize(
    ("shard", "settings", "dtype", "loss", "output"),
    [
        (BLOCKS, "white", "float64", 1e-11, 1e-10),
        (LAYERS, "default", "float32", 1e-4, 1e-3),
    ],
)
def test_cuts_of_shards_are_those_of_one_process(
    launch: Launch, shard: list[str], settings: str, dtype: str, loss: float, output: float, assert_same: Compare
) -> None:
    job = {"cuts": [8, 16, 24, 32], "orders": [10, 7, 4, 1], "steps": 40, "settings": settings, "dtype": dtype}
    (one,), many = launch("run", 1, **job), launch("run", 2, shard=shard, **job)
    assert_same(many)
    assert many[0]["orders"] == one["orders"] == dict.fromkeys(one["orders"], 1)
    assert float((mean_losses(many) - mean_losses([one])).abs().max()) < loss
    assert float((one["output"] - many[0]["output"]).abs().max()) < output


def test_shards_keep_their_objects_and_are_small(launch: Launch) -> None:
    for each in launch("objects", 2, file=FILE, shard=BLOCKS, cuts=[2, 4], orders=[8, 5], steps=6):
        assert each["parameters"] and each["optimizer"] and each["hooks"] and each["kinds"]
        assert each["whole"] == [5, 4] and each["local"][0] in (2, 3)
        assert each["state"] == each["local"]
        assert each["seen"] == 6
        assert each["empty"] == 0


@pytest.mark.parametrize(("at", "options"), [(5, {"dropout": 0.0}), (8, {"dropout": 0.2, "probe": 4})])
def test_a_sharded_run_goes_on_exactly_from_its_checkpoint(
    launch: Launch, tmp_path: Path, at: int, options: dict[str, Any], assert_same: Compare
) -> None:
    job = {"path": str(tmp_path / "checkpoint"), "steps": 12, "cuts": [6, 10], "orders": [9, 6], **options}
    whole, again = launch("resumed", 2, at=at, shard=BLOCKS, **job), launch("resumed", 2, at=0, shard=BLOCKS, **job)
    assert_same([*whole, *again])
    for rank in range(2):
        assert again[rank]["losses"] == whole[rank]["losses"][at:]
    # the checkpoint is that of any run: replicas take over what shards have begun
    replicas = launch("resumed", 2, at=0, **job)
    assert replicas[0]["orders"] == whole[0]["orders"]
    assert float((replicas[0]["output"] - whole[0]["output"]).abs().max()) < 1e-3


@pytest.mark.parametrize("worse_on", [0, 1])
def test_the_guard_takes_a_cut_of_shards_back(launch: Launch, worse_on: int, assert_same: Compare) -> None:
    results = launch("guarded", 2, worse_on=worse_on, cuts=[5], orders=[8], shard=BLOCKS)
    assert_same(results)
    assert all(("taken back" in each["events"][0]) is (worse_on == 0) for each in results)


def test_a_cut_that_fails_leaves_the_shards_as_they_were(launch: Launch, assert_same: Compare) -> None:
    results = launch("failing", 2, policy="skip", shard=BLOCKS)
    assert_same(results)
    assert all(each["events"][0].startswith("step 3: no cut") for each in results)


def test_other_ways_to_shard_are_refused(launch: Launch) -> None:
    said = {
        "inside": "the model itself is not sharded",
        "group": "several modules were sharded as one group",
        "placement": "has the placements (Shard(dim=1),)",
        "offload": "is offloaded",
        "state": "AdamW keeps 'row', which does not have its parameter's shape",
        "weak": "something refers to 'SequenceLinear.weight' weakly",
    }
    for found in launch("refused", 2, file=FILE):
        for how, text in said.items():
            told, as_it_was = found[how]
            assert text in told and "Remedy" in told
            assert as_it_was


@pytest.mark.parametrize(
    ("victim", "where", "count"),
    [
        (1, "compressm.surgery.sharding:Sharding._gather", 5),  # after two when made, and two checkpoints: the cut
        pytest.param(0, "compressm.surgery.sharding:_Shard._make_again", 2, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_with_its_shards_leaves_a_run_that_resumes(
    launch: Launch, tmp_path: Path, victim: int, where: str, count: int, assert_same: Compare
) -> None:
    run = {"steps": 12, "cuts": [5, 9], "orders": [9, 6], "dropout": 0.2, "shard": BLOCKS}
    job = {"path": str(tmp_path / "checkpoint"), **run}
    dead = launch("killed", 2, victim=victim, where=where, count=count, **job)
    assert dead[victim] is None
    assert dead[1 - victim]["error"] in ("DistributedError", "RuntimeError")
    assert_same([*launch("run", 2, **run), *launch("resumed", 2, at=0, **job)])
