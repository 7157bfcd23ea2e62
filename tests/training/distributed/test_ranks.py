"""What happens between processes: agreement, disagreement, failure, roll-back, resuming."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Launch = Callable[..., list[Any]]
Compare = Callable[[list[dict[str, Any]]], None]

pytestmark = pytest.mark.timeout(600)


def test_nested_values_travel_whole(launch: Launch) -> None:
    for rank, found in enumerate(launch("pooled", 3)):
        assert [each["rank"] for each in found["everywhere"]] == [0, 1, 2]
        assert found["first"]["rank"] == 0
        assert torch.equal(found["total"], torch.tensor([3.0, 3.0], dtype=torch.float64))
        own = found["everywhere"][rank]
        assert own["list"] == [1.5, None, "x"]
        assert own["tuple"] == (rank, float("inf"))
        assert (own["half"].shape, own["half"].dtype) == ((2, 0, 3), torch.float16)
        assert torch.equal(own["big"], torch.full((10 * (rank + 1), 10), 1 + 2j))
        assert (own["number"].item(), own["number"].dtype) == (3, torch.bfloat16)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("schedule", r"the plan is .*\[3\].* on rank 0 and .*\[4\].* on rank 1"),
        ("on_error", r"on_error is 'skip' on rank 0 and 'raise' on rank 1"),
        ("mirrors", r"the number of mirrors is 0 on rank 0 and 1 on rank 1"),
        ("buffer", r"buffer 'extra' is float32 \(3,\) on rank 0 and int64 \(3,\) on rank 1"),
        ("optimizer", r"optimizer 0, group 0, parameter 0 \('encoder.weight'\) is .*exp_avg.* and \{\} on rank 1"),
        ("after", r"parameter 'blocks.0.ssm.nu_log' is float32 \(6,\) on rank 0 and float32 \(12,\) on rank 1"),
    ],
)
def test_ranks_that_differ_are_told_on_every_rank(launch: Launch, how: str, said: str) -> None:
    for found in launch("disagree", 2, how=how):
        assert found["error"] == "DistributedError"
        assert re.search(said, found["text"])
        assert "1 of 2 ranks differ" in found["text"]


def test_one_that_cannot_follow_a_cut_stops_all(launch: Launch) -> None:
    for found in launch("disagree", 2, how="following"):
        assert found["error"] == "DistributedError"
        assert "Process 1 could not follow the cut of rank 0 (SurgeryError: no room)" in found["text"]


def test_a_plain_model_is_refused_where_there_are_several_processes(launch: Launch) -> None:
    for found in launch("plain", 2):
        assert found["error"] == "ConfigError"
        assert "Give the DistributedDataParallel object" in found["text"]


@pytest.mark.parametrize(("worse_on", "orders"), [(0, 12), (1, 8)])
def test_rank_0_alone_judges_for_the_guard(launch: Launch, worse_on: int, orders: int, assert_same: Compare) -> None:
    results = launch("guarded", 2, worse_on=worse_on, cuts=[5], orders=[8])
    assert_same(results)
    for each in results:
        assert each["calls"] == 2  # the metric may be one that all processes compute together
        assert each["orders"] == dict.fromkeys(each["orders"], orders)
        assert ("taken back" in each["events"][0]) is (worse_on == 0)
        assert each["steps"] == (9 if worse_on == 0 else 12)


def test_a_cut_that_fails_on_rank_0_is_skipped_everywhere(launch: Launch, assert_same: Compare) -> None:
    results = launch("failing", 2, policy="skip")
    assert_same(results)
    for rank, each in enumerate(results):
        assert each["events"][0].startswith("step 3: no cut")
        assert "blocks.0.ssm" in each["events"][0]
        # the second cut fails for a reason that nobody foresaw: nobody goes on
        assert each["error"] == ("ZeroDivisionError" if rank == 0 else "DistributedError")
        assert "a bug" in each["text"]


def test_errors_are_raised_on_every_rank(launch: Launch) -> None:
    for each in launch("failing", 2, policy="raise"):
        assert each["error"] == "InvalidSystemError"
        assert "blocks.0.ssm" in each["text"]


@pytest.mark.parametrize(
    ("at", "options"),
    [(5, {"dropout": 0.0}), (8, {"dropout": 0.2, "probe": 4})],  # between the captures of a cut; with an open probe
)
def test_a_run_goes_on_exactly_from_its_checkpoint(
    launch: Launch, tmp_path: Path, at: int, options: dict[str, Any], assert_same: Compare
) -> None:
    path = str(tmp_path / "checkpoint")
    job = {"path": path, "steps": 12, "cuts": [6, 10], "orders": [9, 6], **options}
    whole, again = launch("resumed", 2, at=at, **job), launch("resumed", 2, at=0, **job)
    assert_same([*whole, *again])
    for rank in range(2):  # each rank has its own share of the batches and its own dropout
        assert again[rank]["losses"] == whole[rank]["losses"][at:]
    if not options["dropout"]:  # one process takes over what two have begun, their captures included
        (alone,) = launch("resumed", 1, at=0, **job)
        assert alone["orders"] == whole[0]["orders"]
        assert alone["values"][0] == pytest.approx(whole[0]["values"][0], rel=1e-4)


KILLED = {"steps": 14, "cuts": [5, 9], "orders": [9, 6], "dropout": 0.2}
CUT = "compressm.training.distributed.joined"
RANKS = "compressm.training.distributed.rank_states"
RENEWAL = "compressm.training.distributed.replicas"


@pytest.fixture(scope="module")
def uninterrupted(launch: Launch) -> list[Any]:
    return launch("run", 2, **KILLED)


@pytest.mark.parametrize(
    ("victim", "where", "count"),
    [
        (0, f"{CUT}:pool_captures", 1),
        (1, f"{CUT}:follow", 1),
        (1, f"{RANKS}:RankStates.collect", 3),  # the first checkpoint after a cut
        pytest.param(0, f"{CUT}:require_equal", 2, marks=pytest.mark.slow),  # right before the first cut
        pytest.param(0, f"{CUT}:require_equal", 3, marks=pytest.mark.slow),  # right after it
        pytest.param(1, f"{CUT}:pool_captures", 1, marks=pytest.mark.slow),
        pytest.param(0, f"{RENEWAL}:renew", 1, marks=pytest.mark.slow),
        pytest.param(1, f"{RENEWAL}:renew", 2, marks=pytest.mark.slow),
        pytest.param(0, "compressm.checkpoint.saving:write_folder", 3, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_around_a_cut_leaves_a_run_that_resumes(
    launch: Launch, uninterrupted: list[Any], tmp_path: Path, victim: int, where: str, count: int, assert_same: Compare
) -> None:
    job = {"path": str(tmp_path / "checkpoint"), **KILLED}
    dead = launch("killed", 2, victim=victim, where=where, count=count, **job)
    assert dead[victim] is None
    assert dead[1 - victim]["error"] in ("DistributedError", "RuntimeError")  # told, instead of waiting for ever
    assert_same([*uninterrupted, *launch("resumed", 2, at=0, **job)])
