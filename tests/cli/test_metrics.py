"""metrics.jsonl and the run folder."""

import json
from pathlib import Path

import pytest

from compressm.cli.config import RunConfig
from compressm.cli.folder import RunFolder, find_checkpoints
from compressm.cli.metrics import MetricsFile, read_metrics, without_clock
from compressm.errors import CheckpointError, ConfigError


def test_records_are_cut_back_to_a_known_length_and_go_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.append({"step": 1})
    length = first.sync()
    first.append({"step": 2})
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 3, "los')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    second = MetricsFile(path, length)
    second.append({"step": 2})
    second.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_that_is_shorter_than_the_checkpoint_knew_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"has 3 bytes.*4"):
        MetricsFile(tmp_path / "metrics.jsonl", 4)


def test_what_json_cannot_hold_becomes_null_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"nan": float("nan"), "list": (0.1 + 0.2, float("inf"))})
    file.close()
    assert read_metrics(path) == [{"nan": None, "list": [0.1 + 0.2, None]}]


def test_wall_clock_fields_are_left_out_at_any_depth() -> None:
    record = {"step": 1, "seconds": 2.0, "report": {"layers": [{"name": "a", "seconds": 1}]}}
    assert without_clock(record) == {"step": 1, "report": {"layers": [{"name": "a"}]}}


def test_a_folder_is_made_whole_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "run", RunConfig(), {"data": "x"})
    assert folder.config() == RunConfig()
    assert folder.note() == {"data": "x"}
    assert RunFolder.open(tmp_path / "a" / "run") == folder
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty; continue it with --resume"):
        RunFolder.create(tmp_path, RunConfig(), {})
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_runs_without_a_name_get_distinct_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {RunFolder.create(None, RunConfig(), {}).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.parent == Path("runs") and path.name.startswith("digits-") for path in paths)


def test_the_newest_checkpoint_is_found_and_old_ones_are_pruned(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig(), {})
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        find_checkpoints(folder.path)
    for step in (0, 9, 10, 200):
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "structure.json").write_text(json.dumps({}))
    (folder.path / "checkpoints" / ".step-00000300.partial").mkdir()
    assert find_checkpoints(folder.path)[0] == folder.checkpoint(200)
    assert find_checkpoints(folder.checkpoint(9)) == [folder.checkpoint(9)]
    folder.prune(2)
    assert folder.checkpoints() == [folder.checkpoint(10), folder.checkpoint(200)]
