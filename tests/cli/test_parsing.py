"""From mappings to settings: every key and type is checked."""

from pathlib import Path

import pytest
import yaml

from compressm.cli.config import CompressionConfig, PresetName, RunConfig
from compressm.cli.flags import SETTINGS
from compressm.cli.parsing import build, flatten, merge, nest, parse_assignments
from compressm.cli.recipes import RECIPES, resolve
from compressm.data import DATASETS
from compressm.errors import ConfigError


def _set(*assignments: str) -> RunConfig:
    return build(RunConfig, parse_assignments(assignments))


def test_defaults_survive_a_round_trip_through_yaml() -> None:
    config = RunConfig()
    assert build(RunConfig, yaml.safe_load(yaml.safe_dump(flatten(config)))) == config
    config = _set("compression.at=[3, 5]", "compression.preset=paper", "training.threads=2", "compression.guard=0.02")
    assert build(RunConfig, yaml.safe_load(yaml.safe_dump(flatten(config)))) == config
    assert config.compression.at == (3, 5)
    assert config.compression.preset is PresetName.PAPER


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.stpes=5", "Unknown setting 'training.stpes'. Did you mean 'training.steps'?"),
        ("trainig.steps=5", "Unknown setting 'trainig'. Did you mean 'training'?"),
        ("steps=5", "Unknown setting 'steps'. Did you mean 'training.steps'?"),
        ("ordr=5", "Unknown setting 'ordr'. Did you mean 'model.order'?"),
        ("model.orders=5", "Unknown setting 'model.orders'. Did you mean 'model.order'?"),
        ("compression.xyzzy=1", "Unknown setting 'compression.xyzzy'. Known are enabled, preset"),
        ("training=5", "training is 5; wanted a group of settings"),
        ("training.steps=many", "training.steps is 'many'; wanted an integer"),
        ("training.steps=2.5", "training.steps is 2.5; wanted an integer"),
        ("training.steps=true", "training.steps is True; wanted an integer"),
        ("training.steps=null", "training.steps is None; wanted an integer"),
        ("training.lr=.nan", "training.lr is nan; wanted a finite number"),
        ("training.lr=-1", "training.lr is -1.0; wanted a finite number of 0 or more"),
        ("training.steps=0", "training.steps is 0; wanted 1 or more"),
        ("training.seed=-1", "training.seed is -1; wanted 0 to"),
        ("model.bidirectional=1", "model.bidirectional is 1; wanted true or false"),
        ("model.layer=lur", "model.layer is 'lur'; wanted one of lru, dense, "),
        ("model.layer=lur", ". Did you mean 'lru'?"),
        ("data.dataset=[digits]", "data.dataset is ['digits']; wanted text"),
        ("compression.window=5", "wanted 2 values, found 1"),
        ("compression.window=a,b", "compression.window is 'a'; wanted an integer"),
        ("compression.discard=1.5", "compression.discard is 1.5; wanted at least 0 and less than 1"),
        ("compression.orders=[]", "compression.orders is empty"),
        ("compression.at=0,5", "compression.at is 0; wanted 1 or more"),
        ("model.r_min=0.9999", "wanted 0 <= r_min < r_max < 1"),
        ("model.dropout=1", "model.dropout is 1.0"),
        ("output.keep=0", "output.keep is 0; wanted 1 or more"),
        ("training.steps", "'training.steps' is no assignment"),
        ("training.steps=[", "the value is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_wanted(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _set(assignment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("compression.discard=0.1", "compression.orders=[5]"), "discard and orders contradict"),
        (("compression.drop=0.1", "compression.orders=[5]"), "orders and drop contradict"),
        (("compression.bound=1", "compression.reference=initial"), "reference goes with discard, not with bound"),
        (("compression.at=[5]", "compression.every=2"), "at and every contradict"),
        (("compression.cuts=2", "compression.every=2"), "cuts and every contradict"),
        (("compression.at=[5]", "compression.window=[1, 9]"), "at and window contradict"),
        (("compression.orders=[5, 3]", "compression.cuts=3"), "2 orders for 3 cuts (cuts)"),
        (("compression.orders=[5, 3]", "compression.at=[3]"), "2 orders for 1 cuts (at)"),
    ],
)
def test_contradictions_are_refused(assignments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _set(*assignments)
    assert message in str(caught.value)


def test_numbers_written_as_text_are_read() -> None:
    assert isinstance(yaml.safe_load("1e-3"), str)  # YAML 1.1
    config = _set("training.lr=1e-3", "training.steps=1e3", "compression.orders=8,4", "compression.window=1,50")
    assert config.training.lr == 1e-3
    assert config.training.steps == 1000
    assert config.compression == CompressionConfig(orders=(8, 4), window=(1, 50))


def test_later_settings_win_and_leave_their_neighbours_alone() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert nest({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_priority_is_recipe_then_file_then_flags_then_set(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {steps: 10, lr: 2e-3, seed: 7}\nmodel: {width: 3}\n")
    config = resolve(
        "smnist", file, nest({"training.lr": 3e-3, "model.width": 4}), parse_assignments(["model.width=5"])
    )
    assert (config.data.dataset, config.model.order, config.training.steps) == ("smnist", 256, 10)
    assert (config.training.lr, config.training.seed, config.model.width) == (3e-3, 7, 5)


def test_every_data_set_has_a_sound_recipe() -> None:
    assert set(RECIPES) <= set(DATASETS)
    for name in (*DATASETS, "ucr:GunPoint"):
        assert resolve(name, None, {}, {}).data.dataset == name


def test_own_arrays_take_no_data_sets_recipe() -> None:
    config = resolve(None, None, nest({"data.path": "my.npz"}), {})
    assert config.model == RunConfig().model


def test_a_named_data_set_wins_over_a_path_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  path: my.npz\n  split_seed: 3\n")
    data = resolve("fsdd", file, {}, {}).data
    assert (data.dataset, data.path, data.split_seed) == ("fsdd", None, 3)
    assert resolve(None, file, {}, {}).data.path == "my.npz"


def test_every_flag_names_a_setting() -> None:
    known = {f"{group}.{key}" for group, settings in flatten(RunConfig()).items() for key in settings}
    assert set(SETTINGS.values()) <= known


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n", "holds list"), ("a: [", "is not YAML"), ("hello", "holds str"), ("stesp: 3", "Unknown setting 'stesp'")],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve("digits", file, {}, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve("digits", tmp_path / "missing.yaml", {}, {})
