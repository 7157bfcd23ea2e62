"""Whatever is given to a public function: it works, or raises an error of the library's own and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import compressm as c
from compressm import training as t
from compressm.cli.config import RunConfig
from compressm.cli.parsing import build, flatten, parse_assignments
from compressm.cli.recipes import read_yaml, resolve
from compressm.convert import convert_
from compressm.errors import ConfigError
from compressm.layers import (
    DSS,
    LRU,
    LSSL,
    S4,
    S4D,
    S5,
    DampedLinOSS,
    DenseSSM,
    LinOSS,
    ModelConfig,
    RotationSSM,
    SequenceModel,
)
from compressm.linalg.clamping import clamp_poles
from compressm.ops import (
    CostTable,
    bank_lti,
    bank_reference,
    bank_step,
    choose_form,
    dense_bank_response,
    dense_lti,
    dense_reference,
    diagonal_lti,
    diagonal_reference,
    diagonal_step,
    low_rank_response,
    use_cost_table,
    use_kernels,
)
from compressm.reduction.weighting import Limits

NewRun = Callable[..., Any]

EXAMPLES = 80  # of each of eight kinds, thrice as many of settings
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


LAYER = {"width": H, "order": N}
CONSTRUCTORS: dict[Callable[..., Any], dict[str, Any]] = {
    c.HankelEnergy: {},
    c.ErrorBound: {"tolerance": 1.0},
    c.FixedOrder: {"order": 3},
    c.FixedFraction: {"drop": 0.2},
    c.BalancedTruncation: {},
    c.BalancedSelection: {},
    c.ModalTruncation: {},
    c.CompressionSettings: {},
    Limits: {},
    CostTable: {"scale": {"chunked": 1.0}},
    ModelConfig: {},
    t.At: {"steps": (1, 2)},
    t.Every: {"interval": 3},
    t.WarmupThenEvery: {"warmup": 1, "interval": 2},
    t.Window: {"start": 0, "end": 10, "cuts": 2},
    t.Guard: {"metric": float, "allowed": 0.1, "higher_is_better": True, "probe_after": 3},
    t.CutPlan: {"schedule": t.At((1,)), "settings": c.CompressionSettings()},
    **dict.fromkeys((LRU, DenseSSM, DSS, LSSL, RotationSSM, S4, S4D, S5, LinOSS, DampedLinOSS), LAYER),
}
"""What needs no more than these arguments; any that its signature has is then replaced by a hostile one."""


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
    field = data.draw(st.sampled_from(list(signature(kind).parameters)))
    refused(lambda: kind(**{**CONSTRUCTORS[kind], field: data.draw(hostile)}))


@fuzz(2 * EXAMPLES)
@given(data=st.data())
def test_recurrences_and_systems(data: st.DataObject) -> None:
    re = torch.randn
    diagonal = {
        "nu": torch.rand(N), "theta": torch.rand(N), "b_re": re(N, H), "b_im": re(N, H), "c_re": re(H, N),
        "c_im": re(H, N), "u": re(2, 5, H),
    }  # fmt: skip
    one = {**diagonal, "u": re(2, H), "state": torch.zeros(2, N, 2)}
    bank = {"nu": torch.rand(H, N), "theta": torch.rand(H, N), "w_re": re(H, N), "w_im": re(H, N), "u": re(2, 5, H)}
    dense = {"a": torch.eye(N) / 2, "b": re(N, H), "c": re(H, N), "u": re(2, 5, H)}
    system = {"a": torch.rand(N) / 2, "b": re(N, H), "c": re(H, N), "d": None, "output": "real", "log_a": None}
    sizes = dict.fromkeys(("batch", "length", "inputs", "outputs", "order"), 3)
    whole = c.StateSpace(**system)
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (diagonal_lti, {**diagonal, "form": None, "feedthrough": None}),
        (diagonal_reference, diagonal),
        (diagonal_step, {**one, "feedthrough": None}),
        (bank_lti, {**bank, "feedthrough": None}),
        (bank_reference, bank),
        (bank_step, {**bank, "u": re(2, H), "state": torch.zeros(2, H, N, 2), "feedthrough": re(H)}),
        (dense_lti, dense),
        (dense_reference, dense),
        (dense_bank_response, {"a": re(H, N, N), "b": re(H, N), "c": re(H, N), "length": 5}),
        (low_rank_response, {name: re(H, N) for name in ("nu", "theta", "p", "q", "b", "c")} | {"length": 5}),
        (choose_form, {**sizes, "training": True, "machine": None}),
        (c.StateSpace, {**system, "sampling_time": 1.0}),
        (c.hankel_singular_values, {"system": whole, "frame": c.Frame.REAL, "horizon": None}),
        (clamp_poles, {"system": whole, "margin": 0.1}),
    ]
    function, arguments = data.draw(st.sampled_from(calls))
    name = data.draw(st.sampled_from(list(arguments)))
    refused(lambda: function(**{**arguments, name: data.draw(hostile)}))


@fuzz()
@given(data=st.data())
def test_analysis_cut_and_compressor(data: st.DataObject, new_run: NewRun) -> None:
    run = new_run()
    run.step()
    verbs: list[Callable[..., Any]] = [
        c.analyze, c.compress_, c.find_layers, c.InTrainingCompressor, c.Calibration, convert_
    ]  # fmt: skip
    function = data.draw(st.sampled_from(verbs))
    name = data.draw(st.sampled_from(list(signature(function).parameters)))
    own: dict[str, Any] = {"model": run.model}
    if function is c.InTrainingCompressor:
        own |= {"optimizer": run.optimizer, "schedule": t.At((3,))}
    before = run.fingerprint()
    if refused(lambda: function(**{**own, name: data.draw(hostile)})):
        assert run.fingerprint() == before


def test_switches_for_the_process() -> None:
    for function in (use_kernels, use_cost_table):
        assert all(refused(lambda: function(value)) for value in (None, 1, "x", len))  # noqa: B023


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_error": "raise"},
        {"total_steps": "100"},
        {"total_steps": 100.0},
        {"schedule": "every 100"},
        {"schedule": t.At((3,)), "criteria": c.FixedOrder(3)},
        {"schedule": t.At((3,)), "criteria": [3]},
        {"schedule": t.At((3,)), "criteria": "abc"},
        {"schedule": t.At((3,)), "settings": "no such preset"},
        {"schedule": t.At((3,)), "guard": 0.1},
        {"schedule": t.At((3,)), "total_steps": 100},
        {},
    ],
)
def test_plain_mistakes_with_a_compressor(wrong: dict[str, Any], new_run: NewRun) -> None:
    run = new_run()
    before = run.fingerprint()
    arguments = wrong if {"schedule", "total_steps"} & set(wrong) or not wrong else {"schedule": t.At((3,)), **wrong}
    with pytest.raises(ConfigError):
        c.InTrainingCompressor(run.model, run.optimizer, **arguments)
    assert run.fingerprint() == before


def compressor_of(run: Any) -> t.InTrainingCompressor:
    guard = t.Guard(lambda: 1.0, allowed=1.0, higher_is_better=True, probe_after=3)
    arguments: dict[str, Any] = {"schedule": t.At((3, 8)), "criteria": (c.FixedOrder(5),), "guard": guard}
    return c.InTrainingCompressor(run.model, run.optimizer, **arguments)


def trained(run: Any, steps: int) -> tuple[Any, t.InTrainingCompressor]:
    compressor = compressor_of(run)
    for _ in range(steps):
        run.step()
        compressor.step()
    return run, compressor


@fuzz()
@given(data=st.data())
def test_states_of_a_compressor(data: st.DataObject, new_run: NewRun) -> None:
    run, compressor = trained(
        new_run(), data.draw(st.sampled_from([2, 4, 7]))
    )  # captures; a pending probe; both behind
    state = data.draw(st.one_of(alterations(compressor.state_dict()), hostile))
    before = run.fingerprint(), compressor.steps, compressor.history, compressor.pending_probe
    if refused(lambda: compressor.load_state_dict(state)):
        assert (run.fingerprint(), compressor.steps, compressor.history, compressor.pending_probe) == before
        run.step()
        compressor.step()


@pytest.fixture(scope="module")
def recorded(new_run: NewRun) -> list[tuple[Callable[[Any], Any], Any]]:
    """What reads a record, and a record of a real run."""
    run, compressor = trained(new_run(), 4)
    bank = new_run(layer="s4d").model
    return [
        (t.History.from_dict, compressor.history.to_dict()),
        (c.CompressionReport.from_dict, compressor.history.cuts[0].report.to_dict()),
        (c.ReductionPlan.from_dict, c.analyze(run.model).to_dict()),
        (c.ReductionPlan.from_dict, c.analyze(bank).to_dict()),
        (c.CompressionReport.from_dict, c.compress_(bank).to_dict()),
        *(
            (t.schedule_from_dict, schedule.to_dict())
            for schedule in (t.At((1, 2)), t.Every(3), t.Window(0, 9, 3), t.WarmupThenEvery(1, 2))
        ),
        (ModelConfig.from_dict, ModelConfig().to_dict()),
    ]


@fuzz(2 * EXAMPLES)
@given(data=st.data())
def test_records(data: st.DataObject, recorded: list[tuple[Callable[[Any], Any], Any]]) -> None:
    read, record = data.draw(st.sampled_from(recorded))
    assert not refused(lambda: read(record))
    refused(lambda: read(data.draw(st.one_of(alterations(record), hostile))))


@fuzz()
@given(data=st.data())
def test_checkpoints(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, new_run: NewRun) -> None:
    run, compressor = trained(new_run(), 4)
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
        assert not refused(lambda: kind(**arguments))  # noqa: B023
    assert refused(lambda: c.HankelEnergy(float("nan")))
    assert isinstance(SequenceModel(ModelConfig(order=2)), torch.nn.Module)
