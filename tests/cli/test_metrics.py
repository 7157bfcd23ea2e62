"""metrics.jsonl and the run folder."""

import json
from pathlib import Path

import pytest

from compressm.cli.config import RunConfig
from compressm.cli.folder import RunFolder, find_checkpoints
from compressm.cli.metrics import MetricsFile, read_metrics, without_clock
from compressm.cli.note import RunNote
from compressm.errors import CheckpointError, ConfigError
from compressm.ops import CostTable

NOTE = RunNote("fingerprint", CostTable({"chunked": 2.0}))


def test_records_are_cut_back_to_a_known_length_and_go_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.append({"kind": "train", "step": 1})
    length = first.sync()
    first.append({"kind": "train", "step": 2})
    first.close()
    with path.open("a") as stream:
        stream.write('{"kind": "train", "step": 3, "los')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    second = MetricsFile(path, length)
    second.append({"kind": "train", "step": 2})
    second.close()
    assert path.read_text() == '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'


def test_a_file_that_is_shorter_than_the_checkpoint_knew_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"has 3 bytes.*4.*--config .*config\.yaml"):
        MetricsFile(tmp_path / "metrics.jsonl", 4)


def test_what_json_cannot_hold_becomes_null_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"kind": "train", "step": 1, "nan": float("nan"), "list": (0.1 + 0.2, float("inf"))})
    file.close()
    assert read_metrics(path) == [{"kind": "train", "step": 1, "nan": None, "list": [0.1 + 0.2, None]}]


def test_wall_clock_fields_are_left_out_at_any_depth() -> None:
    record = {"step": 1, "seconds": 2.0, "report": {"layers": [{"name": "a", "seconds": 1}]}}
    assert without_clock(record) == {"step": 1, "report": {"layers": [{"name": "a"}]}}


def test_a_folder_is_made_whole_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "run", RunConfig(), NOTE)
    assert folder.config() == RunConfig()
    assert folder.note() == NOTE
    assert RunFolder.open(tmp_path / "a" / "run") == folder
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists and is not empty; choose another one with --run\.$"):
        RunFolder.create(tmp_path, RunConfig(), NOTE)
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config\.yaml .* that a run has made\.$"):
        RunFolder.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_only_a_run_is_to_be_continued_and_only_a_free_place_to_be_taken(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "file"
    RunFolder.create(run, RunConfig(), NOTE)
    with pytest.raises(ConfigError, match=f"continue it with --resume {run}, or choose"):
        RunFolder.create(run, RunConfig(), NOTE)
    with pytest.raises(
        ConfigError, match=f"there is no such folder. .* or start a run there with --run {tmp_path}/new"
    ):
        RunFolder.open(tmp_path / "new")
    file.write_text("text")
    with pytest.raises(ConfigError, match="is a file; choose another one with --run"):
        RunFolder.create(file, RunConfig(), NOTE)
    with pytest.raises(ConfigError, match=r"it is a file\. .* a run has made\.$"):
        RunFolder.open(file)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"data": 3}', '{"data": "x", "cost_table": {"scale": {"a": 1}}}']
)
def test_a_damaged_note_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig(), NOTE)
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read: .*config\.yaml"):
        folder.note()


def test_a_damaged_configuration_is_an_error_with_its_path(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig(), NOTE)
    folder.config_file.write_text("model: {order: x}")
    with pytest.raises(ConfigError, match=r"config\.yaml: model\.order is 'x'"):
        folder.config()


def test_a_note_of_an_older_run_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"data": "x", "torch": "2"}')
    assert RunNote.read(tmp_path).table == CostTable()


@pytest.mark.parametrize("line", ['{"kind": "tr', "3", '{"step": 1}', '{"kind": "train"}'])
def test_a_damaged_record_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "start", "step": 0}}\n{line}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2, .*no record"):
        read_metrics(path)


def test_runs_without_a_name_get_distinct_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {RunFolder.create(None, RunConfig(), NOTE).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.parent == Path("runs") and path.name.startswith("digits-") for path in paths)


def test_the_newest_checkpoint_is_found_and_old_ones_are_pruned(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig(), NOTE)
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
