"""Whatever is given to a public function: it works, or raises an error of the library's own and changes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import compressm as c
from compressm import training as t
from compressm.checkpoint.tree import encode
from compressm.cli.config import RunConfig
from compressm.cli.parsing import build, flatten, parse_assignments
from compressm.cli.recipes import read_yaml, resolve
from compressm.layers import LRU, DenseSSM, ModelConfig, SequenceModel

EXAMPLES = 80  # of each of seven kinds, thrice as many of settings
N, H = 4, 3

PLAIN = [
    None, True, False, -1, 0, 1, 2, 10**30, -(10**30), 2**63, 0.5, -0.5, float("nan"), float("inf"), -float("inf"),
    1e308, "", "x", "1", "../x", "\0", b"x", [], [1], (), (1, 2), {}, {"a": 1}, object(), 1j, len, int, range(3),
    np.float64("nan"), np.int64(3), np.zeros(2), nn.Linear(1, 1),
]  # fmt: skip


def tensor(kind: str, shape: list[int]) -> Tensor:
    if kind == "meta":
        return torch.zeros(shape, device="meta")
    values = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    made = {
        "double": values.double, "half": values.half, "long": values.long, "bool": lambda: values > 0,
        "complex": lambda: values.to(torch.complex64), "nan": lambda: values * float("nan"),
        "huge": lambda: values * 3e38, "grad": lambda: values.requires_grad_(), "float": lambda: values,
    }  # fmt: skip
    return made[kind]()


KINDS = ("float", "double", "half", "long", "bool", "complex", "nan", "huge", "grad", "meta")
tensors = st.builds(tensor, st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=4))
hostile = st.one_of(st.sampled_from(PLAIN), tensors)


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every place in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield (*above, key)
        yield from paths(item, (*above, key))


def altered(value: Any, path: tuple[Any, ...], new: Any, how: str) -> Any:
    """A copy of nested containers with one place replaced, removed, or with a stranger beside it."""
    key, *rest = path
    other = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        other[key] = altered(value[key], tuple(rest), new, how)
    elif how == "remove":
        other.pop(key)
    elif how == "add" and isinstance(other, dict):
        other["stranger"] = new
    else:
        other[key] = new
    return other


@st.composite
def alterations(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one hostile change anywhere."""
    path = draw(st.sampled_from(list(paths(value))))
    return altered(value, path, draw(hostile), draw(st.sampled_from(["replace", "replace", "remove", "add"])))


class Training:
    """A small model with an optimizer that has moments."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = SequenceModel(ModelConfig(inputs=2, outputs=2, width=3, order=8, **options))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(3, 6, 2)).square().mean().backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def fingerprint(self) -> Any:
        """Values (NaN included), shapes, places in memory, gradients, optimizer state and modes."""
        model = [
            (n, id(t), t.data_ptr(), tuple(t.shape), t.detach().numpy().tobytes(), t.requires_grad)
            for n, t in (*self.model.named_parameters(), *self.model.named_buffers())
        ]
        grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in self.model.parameters()]
        held: dict[str, Tensor] = {}
        tree = encode(copy.copy(self.optimizer.state_dict()), "optimizer", held)
        modes = [m.training for m in self.model.modules()]
        return model, grads, repr(tree), [(n, t.numpy().tobytes()) for n, t in held.items()], modes


CONSTRUCTORS: dict[Callable[..., Any], dict[str, Any]] = {
    t.At: {"steps": (1, 2)},
    t.Every: {"interval": 3, "start": 0, "stop": None},
    t.WarmupThenEvery: {"warmup": 1, "interval": 2, "stop": None},
    t.Window: {"start": 0, "end": 10, "cuts": 2},
    t.Guard: {
        "metric": float, "allowed": 0.1, "higher_is_better": True, "probe_after": 3, "stop_after_rollback": True
    },
    t.CutPlan: {
        "schedule": t.At((1,)), "settings": c.CompressionSettings(), "criteria": (), "calibration_steps": 2,
        "guard": None,
    },
    LRU: {"width": 3, "order": 4, "r_min": 0.1, "r_max": 0.9, "max_phase": 1.0, "generator": None},
    DenseSSM: {"width": 3, "order": 4, "r_min": 0.1, "r_max": 0.9, "max_phase": 1.0, "generator": None},
}  # fmt: skip


def fuzz(examples: int = EXAMPLES) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def refused(call: Callable[[], Any]) -> bool:
    """Whether the call raised an error of the library; any other error fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, on what is given
        try:
            call()
        except c.CompressmError:
            return True
    return False


@fuzz(3 * EXAMPLES)
@given(data=st.data())
def test_settings_and_layers(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(CONSTRUCTORS)))
    field = data.draw(st.sampled_from(list(CONSTRUCTORS[kind])))
    given_ = {name: value for name, value in CONSTRUCTORS[kind].items() if value is not None}
    refused(lambda: kind(**{**given_, field: data.draw(hostile)}))


@fuzz()
@given(data=st.data())
def test_weights_gradients_and_optimizer_state(data: st.DataObject) -> None:
    """NaN, infinities and absurd sizes anywhere in the run that is cut."""
    run = Training(layer=data.draw(st.sampled_from(["lru", "dense"])))
    run.step()
    where = data.draw(st.sampled_from(["weight", "gradient", "moment"]))
    parameter = data.draw(st.sampled_from([p for n, p in run.model.named_parameters() if ".ssm." in n]))
    value = data.draw(
        st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e20, -100.0, 0.0, 40.0])
    )
    target = {"weight": parameter, "gradient": parameter.grad, "moment": run.optimizer.state[parameter]["exp_avg"]}
    with torch.no_grad():
        target[where].view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] = value
    before = run.fingerprint()
    chosen = c.CompressionSettings(criterion=c.FixedOrder(data.draw(st.integers(1, 7))))
    if refused(lambda: c.compress_(run.model, chosen, optimizer=run.optimizer)):
        assert run.fingerprint() == before
    else:
        assert all(torch.isfinite(p).all() for n, p in run.model.named_parameters() if ".ssm." in n)


def compressor_of(run: Training) -> t.InTrainingCompressor:
    guard = t.Guard(lambda: 1.0, allowed=1.0, higher_is_better=True, probe_after=3)
    arguments: dict[str, Any] = {"schedule": t.At((3, 8)), "criteria": (c.FixedOrder(5),), "guard": guard}
    return c.InTrainingCompressor(run.model, run.optimizer, **arguments)


def trained(steps: int) -> tuple[Training, t.InTrainingCompressor]:
    run = Training()
    compressor = compressor_of(run)
    for _ in range(steps):
        run.step()
        compressor.step()
    return run, compressor


@fuzz()
@given(data=st.data())
def test_states_of_a_compressor(data: st.DataObject) -> None:
    run, compressor = trained(data.draw(st.sampled_from([2, 4, 7])))  # captures; a pending probe; both behind
    state = data.draw(st.one_of(alterations(compressor.state_dict()), hostile))
    before = run.fingerprint(), compressor.steps, compressor.history, compressor.pending_probe
    if refused(lambda: compressor.load_state_dict(state)):
        assert (run.fingerprint(), compressor.steps, compressor.history, compressor.pending_probe) == before
        run.step()
        compressor.step()


@fuzz()
@given(data=st.data())
def test_records(data: st.DataObject) -> None:
    schedules = [t.At((1, 2)), t.Every(3), t.Window(0, 9, 3), t.WarmupThenEvery(1, 2)]
    records: list[tuple[Callable[[Any], Any], Any]] = [
        (t.schedule_from_dict, data.draw(st.sampled_from(schedules)).to_dict()),
        (ModelConfig.from_dict, ModelConfig().to_dict()),
    ]
    read, record = data.draw(st.sampled_from(records))
    assert not refused(lambda: read(record))
    refused(lambda: read(data.draw(st.one_of(alterations(record), hostile))))


@fuzz()
@given(data=st.data())
def test_checkpoints(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run, compressor = trained(4)
    folder = tmp_path_factory.mktemp("c")
    own: dict[str, Any] = {"model": run.model, "optimizer": run.optimizer, "compressor": compressor, "extra": {"a": 1}}
    name = data.draw(st.sampled_from(["path", "scheduler", "adapters", "rng", *own]))
    value = data.draw(hostile.filter(lambda v: not (name == "path" and isinstance(v, str))))
    before = run.fingerprint()
    refused(lambda: c.save_checkpoint(**{"path": folder / "c", **own, name: value}))
    assert run.fingerprint() == before
    c.save_checkpoint(folder / "c", **own)
    own.pop("extra")
    if name != "extra" and refused(lambda: c.load_checkpoint(**{"path": folder / "c", **own, name: value})):
        assert run.fingerprint() == before
        c.load_checkpoint(folder / "c", **own)


@fuzz()
@given(data=st.data())
def test_configurations(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    import yaml

    plain = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=4,
    )
    tree = data.draw(st.one_of(alterations(flatten(RunConfig())), plain))
    if isinstance(tree, dict):
        refused(lambda: build(RunConfig, tree))
        refused(lambda: resolve(None, None, tree, {}))
    path = tmp_path_factory.mktemp("y") / "config.yaml"
    text = st.one_of(st.binary(max_size=40), st.builds(lambda v: yaml.safe_dump(v).encode(), plain))
    path.write_bytes(data.draw(text))
    refused(lambda: resolve(None, path, {}, {}))
    refused(lambda: read_yaml(path))
    refused(lambda: resolve(None, None, {}, parse_assignments([data.draw(st.text(max_size=20))])))


def test_that_hostile_values_are_hostile() -> None:
    """The sound values pass: what is refused above is refused for what was altered."""
    for kind, arguments in CONSTRUCTORS.items():
        assert not refused(lambda: kind(**{n: v for n, v in arguments.items() if v is not None}))  # noqa: B023
    assert refused(lambda: t.Every(0))
    assert isinstance(SequenceModel(ModelConfig(order=2)), torch.nn.Module)
