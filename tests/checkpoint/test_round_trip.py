"""Save, load and go on equals going on."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressm.checkpoint import load_checkpoint, read_structure, save_checkpoint
from compressm.checkpoint.document import TensorInfo
from compressm.checkpoint.tensorfile import from_bytes, to_bytes
from compressm.checkpoint.tree import decode, encode
from compressm.errors import CheckpointError
from compressm.layers import LRU, DenseSSM

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw amsgrad": lambda p, lr: torch.optim.AdamW(p, lr=lr, amsgrad=True),
    "adam fused": lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True),
    "nadam": torch.optim.NAdam,
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, centered=True, momentum=0.5),
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("order", [8, 3])
def test_going_on_after_loading_equals_going_on(tmp_path, make_run, cut_to, equal, name, order):
    run = make_run(make=OPTIMIZERS[name])
    run.train(3)
    if order < 8:
        cut_to(run.model, run.optimizer, order)
        run.train(1)
    run.save(tmp_path / "c", extra={"epoch": 1})
    wanted = run.train(4)
    other = make_run(seed=5, make=OPTIMIZERS[name])
    assert other.load(tmp_path / "c") == {"epoch": 1}
    assert other.train(4) == wanted
    ours, theirs = run.fingerprint(), other.fingerprint()
    del ours["places"], theirs["places"]
    assert equal(ours, theirs)


def test_saving_changes_nothing(tmp_path, cut_run, equal):
    before = cut_run.fingerprint()
    cut_run.save(tmp_path / "c")
    assert equal(cut_run.fingerprint(), before)


def test_an_earlier_larger_model_can_be_loaded_into_a_smaller_one(tmp_path, make_run, cut_to):
    run = make_run()
    run.train(2)
    run.save(tmp_path / "c")
    wanted = run.train(3)
    cut_to(run.model, run.optimizer, 2)
    run.train(1)
    run.load(tmp_path / "c")
    assert run.train(3) == wanted


def test_parameters_stay_the_objects_that_the_optimizer_holds(tmp_path, cut_run, make_run):
    cut_run.save(tmp_path / "c")
    other = make_run()
    held = [id(p) for p in other.model.parameters()]
    other.load(tmp_path / "c")
    assert [id(p) for p in other.model.parameters()] == held
    assert {id(p) for g in other.optimizer.param_groups for p in g["params"]} == set(held)
    assert all(type(g["betas"]) is tuple for g in other.optimizer.param_groups)


def test_weights_alone(tmp_path, cut_run, make_run, equal):
    cut_run.save(tmp_path / "c", rng=False)
    other = make_run(seed=3)
    rng = torch.get_rng_state()
    assert load_checkpoint(tmp_path / "c", other.model) == {}
    assert torch.equal(torch.get_rng_state(), rng)
    assert equal(dict(other.model.state_dict()), dict(cut_run.model.state_dict()))


def test_random_states_are_left_alone_on_request(tmp_path, cut_run, make_run):
    cut_run.save(tmp_path / "c")
    other = make_run(seed=3)
    rng = torch.get_rng_state()
    other.load(tmp_path / "c", rng=False)
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_structure(tmp_path, cut_run):
    cut_run.save(tmp_path / "c", extra={"config": {"width": 4}, "range": (0, float("inf"))})
    structure = read_structure(str(tmp_path / "c"))
    assert set(structure.orders.values()) == {3}
    assert len(structure.orders) == 2
    assert structure.extra == {"config": {"width": 4}, "range": (0, float("inf"))}
    name = next(n for n in structure.tensors if n.endswith("B_re"))
    assert structure.tensors[name] == TensorInfo((3, 4), "float32")
    assert structure.torch_version == torch.__version__
    document = json.loads((tmp_path / "c" / "structure.json").read_text())
    assert document["version"] == 1
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "model.safetensors",
        "structure.json",
        "training.safetensors",
    ]


def test_tied_parameters_are_saved_once_and_stay_tied(tmp_path):
    def build(tied: bool) -> nn.Module:
        model = nn.Module()
        model.a, model.b = nn.Linear(2, 2), nn.Linear(2, 2)
        if tied:
            model.b.weight = model.a.weight
        return model

    model, again = build(True), build(True)
    save_checkpoint(tmp_path / "c", model)
    assert read_structure(tmp_path / "c").aliases == {"b.weight": "a.weight"}
    load_checkpoint(tmp_path / "c", again)
    assert again.b.weight is again.a.weight
    assert torch.equal(again.a.weight, model.a.weight)
    untied = build(False)
    load_checkpoint(tmp_path / "c", untied)
    assert torch.equal(untied.b.weight, model.a.weight)
    save_checkpoint(tmp_path / "c", build(False))
    with pytest.raises(CheckpointError, match=r"'b\.weight' is shared in this model"):
        load_checkpoint(tmp_path / "c", again)


def test_tensors_that_share_memory_and_complex_and_narrow_ones(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.randn(6)
            self.first, self.second = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
            self.pole = nn.Parameter(torch.randn(3, dtype=torch.complex64))
            self.wide = nn.Parameter(torch.randn(2, 2, dtype=torch.complex128).mT)
            self.narrow = nn.Parameter(torch.randn(4).bfloat16())
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("secret", torch.ones(2), persistent=False)

    torch.manual_seed(1)
    model, other = Odd(), Odd()
    save_checkpoint(tmp_path / "c", model)
    assert "secret" not in read_structure(tmp_path / "c").tensors
    load_checkpoint(tmp_path / "c", other)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_extra_state_of_modules(tmp_path):
    class Module(nn.Module):
        value = (1, 2)

        def get_extra_state(self):
            return {"value": self.value, "tensor": torch.arange(3)}

        def set_extra_state(self, state):
            assert state["tensor"].tolist() == [0, 1, 2]
            self.value = state["value"]

    model, other = nn.Sequential(Module()), nn.Sequential(Module())
    model[0].value = (5,)
    save_checkpoint(tmp_path / "c", model)
    load_checkpoint(tmp_path / "c", other)
    assert other[0].value == (5,)
    with pytest.raises(CheckpointError, match="Extra state"):
        load_checkpoint(tmp_path / "c", nn.Sequential(nn.Identity()))


def test_state_wider_than_its_parameter_keeps_its_dtype(tmp_path):
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(2, 2).bfloat16()
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = build()
    wide = torch.randn(2, 2)
    optimizer.state[model.weight]["momentum_buffer"] = wide
    save_checkpoint(tmp_path / "c", model, optimizer=optimizer)
    other, loaded = build()
    load_checkpoint(tmp_path / "c", other, optimizer=loaded)
    assert torch.equal(loaded.state[other.weight]["momentum_buffer"], wide)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)],
            milestones=[2],
        ),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum=False),
    ],
)
def test_schedulers(tmp_path, make):
    def build():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, make(optimizer)

    def steps(optimizer, scheduler, count):
        rates = []
        for _ in range(count):
            optimizer.step()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([1.0] if plateau else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    model, optimizer, scheduler = build()
    steps(optimizer, scheduler, 3)
    save_checkpoint(tmp_path / "c", model, optimizer=[optimizer], scheduler=[scheduler])
    other, optimizer2, scheduler2 = build()
    load_checkpoint(tmp_path / "c", other, optimizer=[optimizer2], scheduler=[scheduler2])
    assert steps(optimizer2, scheduler2, 12) == steps(optimizer, scheduler, 12)


@pytest.mark.parametrize("layer", [lambda n: LRU(3, n), lambda n: DenseSSM(3, n)])
def test_a_model_that_is_itself_a_layer(tmp_path, layer):
    small = layer(4)
    save_checkpoint(tmp_path / "c", small)
    assert read_structure(tmp_path / "c").orders == {"": 4}
    big = layer(9)
    load_checkpoint(tmp_path / "c", big)
    assert big.order == 4
    u = torch.randn(2, 5, 3)
    assert torch.equal(big(u), small(u))


def test_a_model_that_diverged_can_be_saved_and_loaded(tmp_path):
    model, other = LRU(3, 4), LRU(3, 6)
    with torch.no_grad():
        model.B_re.fill_(torch.nan)
    save_checkpoint(tmp_path / "c", model)
    assert read_structure(tmp_path / "c").orders == {"": None}
    load_checkpoint(tmp_path / "c", other)
    assert other.B_re.isnan().all()
    assert other.order == 4


def test_saving_makes_missing_folders(tmp_path):
    save_checkpoint(tmp_path / "a" / "b" / "c", nn.Linear(1, 1))
    assert read_structure(tmp_path / "a" / "b" / "c").extra == {}


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        save_checkpoint(tmp_path / "link", nn.Linear(1, 1))
    assert (tmp_path / "link").is_symlink()
    load_checkpoint(tmp_path / "link", nn.Linear(1, 1))
    assert (tmp_path / "real" / "structure.json").is_file()


class TestTree:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            -0.0,
            1e-310,
            2**80,
            "text ünicode \ud800",
            (1, (2.5, [None])),
            {"$tensor": "a trap", "b": {"$tuple": 3}},
            {1: {"a": ()}, (2, 3): "x", None: 1.5, False: 2},
            [float("inf"), -float("inf")],
            Counter({3: 2}),
            {},
            [],
        ],
    )
    def test_values_survive(self, value, equal):
        stored = json.loads(json.dumps(encode(value, "here", None), allow_nan=False))
        assert equal(decode(stored, {}, "here"), value)

    def test_not_a_number_and_order_of_keys(self):
        back = decode(encode([float("nan")], "here", None), {}, "here")
        assert back[0] != back[0]
        assert list(decode(encode(OrderedDict(b=1, a=2), "x", None), {}, "x")) == ["b", "a"]

    def test_numpy(self, equal):
        tensors = {}
        value = {"a": np.float64(0.1), "n": np.int64(3), "array": np.arange(6, dtype=np.float32).reshape(2, 3).T}
        back = decode(encode(value, "x", tensors), tensors, "x")
        assert equal(back, {"a": 0.1, "n": 3, "array": value["array"]})

    def test_names_of_tensors_do_not_collide(self):
        tensors = {}
        value = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
        back = decode(encode(value, "x", tensors), tensors, "x")
        assert len(tensors) == 2
        assert back["a.b"] == 1
        assert back["a"]["b"] == 2

    @pytest.mark.parametrize("value", [lambda: 0, object(), {1, 2}, b"x", Path("x"), nn.Linear(1, 1), 1j])
    def test_what_would_need_pickling_is_named(self, tmp_path, cut_run, value):
        with pytest.raises(CheckpointError, match=r"extra\.settings\.1\.odd is a "):
            cut_run.save(tmp_path / "c", extra={"settings": [0, {"odd": value}]})
        assert not (tmp_path / "c").exists()

    def test_optimizer_settings_are_named_too(self, tmp_path, cut_run):
        cut_run.optimizer.param_groups[1]["hook"] = print
        with pytest.raises(CheckpointError, match=r"optimizers\.0\.param_groups\.1\.hook is a"):
            cut_run.save(tmp_path / "c")

    def test_tensors_in_extra_are_refused(self, tmp_path, cut_run):
        with pytest.raises(CheckpointError, match=r"extra\.t is a torch\.Tensor"):
            cut_run.save(tmp_path / "c", extra={"t": torch.zeros(1)})

    @pytest.mark.parametrize(
        "node", [{"$eval": "1"}, {"$tensor": "absent"}, {"$tensor": 3}, {"$float": "1"}, {"$tuple": 1},
                 {"$dict": [[1]]}, {"$dict": [[[], 1]]}, {"$tuple": [], "more": 1}, {"$counter": 1}],
    )  # fmt: skip
    def test_unknown_nodes(self, node):
        with pytest.raises(CheckpointError, match="unknown kind of value"):
            decode([node], {}, "here")

    def test_sparse_tensors_are_refused(self):
        with pytest.raises(CheckpointError, match="dense"):
            to_bytes({"a": torch.eye(2).to_sparse()})

    def test_no_tensors_at_all(self):
        assert from_bytes(to_bytes({}), {}, "x") == {}
