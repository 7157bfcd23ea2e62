"""Three ways to give a layer an adapter, and what each refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn

from compressm.adapters import registry
from compressm.adapters.base import StateSpaceAdapter
from compressm.adapters.dense import DenseAdapter
from compressm.adapters.lru import LRUAdapter
from compressm.adapters.registry import find_adapter, find_layers, register_adapter, register_signature
from compressm.compress import analyze
from compressm.errors import AdapterError
from compressm.layers.bidirectional import Bidirectional
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU

pytestmark = pytest.mark.usefixtures("clean_registry")


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def install(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    """Pretend that packages with these entry points are installed."""
    found = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "compressm.adapters" else [])


def test_our_layers_have_their_adapters() -> None:
    assert type(find_adapter(LRU(2, 4))) is LRUAdapter
    assert type(find_adapter(DenseSSM(2, 4))) is DenseAdapter
    assert find_adapter(nn.Linear(2, 2)) is None


def test_a_subclass_of_a_layer_has_its_adapter(other: type[LRUAdapter]) -> None:
    class Mine(LRU):
        pass

    assert type(find_adapter(Mine(2, 4))) is LRUAdapter
    register_adapter(qualified(Mine))(other)
    assert type(find_adapter(Mine(2, 4))) is other
    assert type(find_adapter(LRU(2, 4))) is LRUAdapter


def test_the_decorator_returns_the_class(plain: type[nn.Module], other: type[LRUAdapter]) -> None:
    assert register_adapter(qualified(plain))(other) is other
    assert type(find_adapter(plain())) is other


def test_a_layers_package_is_not_imported() -> None:
    program = (
        "import sys; from compressm import register_adapter, StateSpaceAdapter\n"
        "@register_adapter('wave.Wave_read')\n"
        "class A(StateSpaceAdapter):\n"
        "    def read(self, layer): ...\n"
        "    def write(self, layer, reduction): ...\n"
        "from compressm import find_layers; import torch\n"
        "find_layers(torch.nn.Sequential(torch.nn.Linear(1, 1)))\n"
        "assert 'wave' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_adapters_go_before_registered_ones_before_entry_points(
    monkeypatch: pytest.MonkeyPatch, other: type[LRUAdapter]
) -> None:
    install(monkeypatch, (qualified(LRU), "compressm.adapters.dense:DenseAdapter"))
    layer, mine = LRU(2, 4), other()
    assert type(find_adapter(layer)) is LRUAdapter
    assert find_adapter(layer, {LRU: mine}) is mine
    assert [r.adapter for r in find_layers(nn.Sequential(layer), {LRU: mine})] == [mine]


def test_adapters_for_a_base_class_go_before_registered_ones(other: type[LRUAdapter]) -> None:
    mine = other()
    assert find_adapter(LRU(2, 4), {nn.Module: mine}) is mine


def test_adapters_in_a_call_reach_the_analysis(other: type[LRUAdapter]) -> None:
    class Unread(other):
        def read(self, layer: nn.Module) -> Any:
            raise AttributeError("no such weight")

    with pytest.raises(AdapterError, match="0: Unread cannot read LRU: no such weight"):
        analyze(nn.Sequential(LRU(2, 4)), adapters={LRU: Unread()})


def test_an_entry_point(monkeypatch: pytest.MonkeyPatch, plain: type[nn.Module]) -> None:
    install(monkeypatch, (qualified(plain), "compressm.adapters.dense:DenseAdapter"))
    assert type(find_adapter(plain())) is DenseAdapter
    assert find_adapter(plain()) is find_adapter(plain())


def test_an_entry_point_is_loaded_only_for_its_layer(monkeypatch: pytest.MonkeyPatch, plain: type[nn.Module]) -> None:
    install(monkeypatch, (qualified(plain), "no_such_package.adapters:Missing"))
    assert find_adapter(nn.Linear(2, 2)) is None
    with pytest.raises(AdapterError, match=r"no_such_package\.adapters:Missing cannot be loaded: .*Update or"):
        find_adapter(plain())


def test_an_entry_point_of_the_wrong_kind(monkeypatch: pytest.MonkeyPatch, plain: type[nn.Module]) -> None:
    install(monkeypatch, (qualified(plain), "compressm.layers.lru:LRU"))
    with pytest.raises(AdapterError, match=r"compressm\.layers\.lru:LRU is not a StateSpaceAdapter class"):
        find_adapter(plain())


def test_two_entry_points_for_one_layer(monkeypatch: pytest.MonkeyPatch, plain: type[nn.Module]) -> None:
    name = qualified(plain)
    install(monkeypatch, (name, "compressm.adapters.dense:DenseAdapter"), (name, "compressm.adapters.lru:LRUAdapter"))
    with pytest.raises(AdapterError, match=r"Two installed packages .*DenseAdapter and compressm\.adapters\.lru"):
        find_adapter(plain())


def test_a_second_adapter_for_one_layer(other: type[LRUAdapter]) -> None:
    with pytest.raises(
        AdapterError, match=r"LRU has the adapter compressm\.adapters\.lru\.LRUAdapter already; pass adapters="
    ):
        register_adapter("compressm.layers.lru.LRU")(other)
    assert type(find_adapter(LRU(2, 4))) is LRUAdapter


def test_the_same_adapter_again() -> None:
    register_adapter("compressm.layers.lru.LRU")(LRUAdapter)  # a module that is reloaded


@pytest.mark.parametrize("thing", [nn.Linear, LRUAdapter(), "LRUAdapter", None])
def test_the_decorator_wants_an_adapter_class(thing: Any) -> None:
    with pytest.raises(AdapterError, match="is not a StateSpaceAdapter class; subclass it and write read and write"):
        register_adapter("a.B")(thing)
    assert "a.B" not in registry._registered


def test_an_adapter_without_write(plain: type[nn.Module]) -> None:
    class Half(StateSpaceAdapter):
        def read(self, layer: nn.Module) -> Any: ...

    with pytest.raises(AdapterError, match=r"Half.* does not define write; a StateSpaceAdapter has to"):
        register_adapter("a.B")(Half)


def test_the_decorator_wants_a_name() -> None:
    with pytest.raises(AdapterError, match=r'wanted the layer\'s qualified name, as in @register_adapter\("package'):

        @register_adapter  # type: ignore[arg-type]
        class Forgotten(LRUAdapter):
            pass


@pytest.mark.parametrize("adapters", [{LRU: LRUAdapter}, {"LRU": LRUAdapter()}, {LRU(1, 2): LRUAdapter()}])
def test_the_mapping_wants_classes_and_instances(adapters: Any) -> None:
    with pytest.raises(AdapterError, match=r"adapters maps .* wanted \{Layer: Adapter\(\)\} with an instance, or None"):
        find_layers(nn.Sequential(LRU(2, 4)), adapters)


def test_none_leaves_a_layer_and_its_insides_alone() -> None:
    model = nn.Sequential(LRU(2, 4), Bidirectional(LRU(2, 3), LRU(2, 5)), DenseSSM(2, 4))
    assert [r.name for r in find_layers(model, {DenseSSM: None})] == ["0", "1.ahead", "1.behind"]
    assert [r.name for r in find_layers(model, {Bidirectional: None})] == ["0", "2"]


def test_the_mapping_is_a_mapping() -> None:
    with pytest.raises(AdapterError, match=r"adapters is \[.*; wanted a mapping"):
        find_layers(nn.Sequential(LRU(2, 4)), [LRUAdapter()])  # type: ignore[arg-type]


def test_names_are_those_of_the_model() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), LRU(2, 4)), "b": Bidirectional(LRU(2, 3), LRU(2, 5))})
    layers = find_layers(model)
    assert [layer.name for layer in layers] == ["a.1", "b.ahead", "b.behind"]
    assert all(layer.module is model.get_submodule(layer.name) for layer in layers)


def test_a_module_used_twice_is_one_layer() -> None:
    shared = LRU(2, 4)
    model = nn.Sequential(shared, nn.Sequential(shared, DenseSSM(2, 4)), shared)
    assert [layer.name for layer in find_layers(model)] == ["0", "1.1"]


def test_a_layer_inside_a_layer_belongs_to_the_outer_one(other: type[LRUAdapter]) -> None:
    mine = other()
    layers = find_layers(nn.Sequential(Bidirectional(LRU(2, 3), LRU(2, 5))), {Bidirectional: mine})
    assert [(layer.name, layer.adapter) for layer in layers] == [("0", mine)]


def test_a_model_that_is_a_layer() -> None:
    layer = LRU(2, 4)
    assert [(ref.name, ref.module) for ref in find_layers(layer)] == [("", layer)]


def test_a_model_without_layers() -> None:
    assert find_layers(nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2))) == []


class TestSignatures:
    def test_shapes_agree_with_each_other(self, other: type[LRUAdapter]) -> None:
        class Copy(nn.Module):
            def __init__(self, n: int, m: int, p: int) -> None:
                super().__init__()
                self.inner = nn.Module()
                self.inner.a = torch.zeros(n)
                self.register_buffer("b", torch.zeros(n, m, 2))
                self.c = nn.Parameter(torch.zeros(1, p, dtype=torch.complex64))

        register_signature({"inner.a": "n", "b": "n m 2", "c": "1 n complex"})(other)
        assert type(find_adapter(Copy(3, 2, 3))) is other
        assert find_adapter(Copy(3, 2, 4)) is None
        real = Copy(3, 2, 3)
        real.c = nn.Parameter(torch.zeros(1, 3))
        assert find_adapter(real) is None
        del real.inner.a
        assert find_adapter(real) is None

    def test_the_one_with_the_most_tensors(self, plain: type[nn.Module], other: type[LRUAdapter]) -> None:
        class Both(LRUAdapter):
            pass

        register_signature({"weight": "n m", "bias": "n"})(Both)
        register_signature({"weight": "n m"})(other)
        assert type(find_adapter(plain())) is Both
        assert type(find_adapter(nn.Linear(2, 3, bias=False))) is other
        register_adapter(qualified(plain))(other)
        assert type(find_adapter(plain())) is other

    def test_one_adapter_for_one_signature(self, other: type[LRUAdapter]) -> None:
        register_signature({"weight": "n m"})(other)
        register_signature({"weight": "n m"})(other)
        with pytest.raises(AdapterError, match=r"hold weight \(n m\) have the adapter .*Other already; register the"):
            register_signature({"weight": "n m"})(LRUAdapter)
        with pytest.raises(AdapterError, match="is not a StateSpaceAdapter class"):
            register_signature({"bias": "n"})(nn.Linear)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "shapes", [{}, None, "n m", {"a": ""}, {"a": "n  m"}, {"a": "N"}, {"a": 3}, {"a": "complex"}]
    )
    def test_what_is_no_signature(self, shapes: Any) -> None:
        with pytest.raises(AdapterError, match=r"A signature (is|maps).*wanted"):
            register_signature(shapes)
