"""Which adapter belongs to which layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract

from torch import nn

from compressm.adapters.base import StateSpaceAdapter
from compressm.adapters.signature import Signature
from compressm.adapters.uncompiled import uncompiled
from compressm.checks import require_kind
from compressm.errors import AdapterError

ENTRY_POINT_GROUP = "compressm.adapters"
"""Entry points of this group name an adapter class; the entry's name is the layer's qualified class name."""

Adapters = Mapping[type[nn.Module], StateSpaceAdapter | None]
"""Adapters given for one call, by the layer's class; they go before registered ones. None leaves the layer alone."""

_registered: dict[str, StateSpaceAdapter] = {}
_signatures: dict[Signature, StateSpaceAdapter] = {}


@dataclass(frozen=True, eq=False)
class LayerRef:
    """A layer of a model with its name there and its adapter."""

    name: str
    module: nn.Module
    adapter: StateSpaceAdapter

    @property
    def label(self) -> str:
        """The name for messages; the class's where the layer is the model itself, whose name there is empty."""
        return self.name or type(self.module).__name__


def register_adapter(qualified_name: str) -> Callable[[type[StateSpaceAdapter]], type[StateSpaceAdapter]]:
    """Register an adapter class for the layer class "package.module.Class", which is never imported.

    Raises AdapterError where that name has another adapter already, or the decorated class is no adapter.
    """
    if not isinstance(qualified_name, str):
        raise AdapterError(
            f"register_adapter got {qualified_name!r}; wanted the layer's qualified name, as in "
            f'@register_adapter("package.module.Layer").'
        )

    def register(adapter: type[StateSpaceAdapter]) -> type[StateSpaceAdapter]:
        instance = _instance(adapter, repr(adapter))
        known = _registered.get(qualified_name)
        if known is not None and _name(type(known)) != _name(adapter):
            raise AdapterError(
                f"{qualified_name} has the adapter {_name(type(known))} already; pass adapters={{Layer: "
                f"{adapter.__name__}()}} to use another one for a call."
            )
        _registered[qualified_name] = instance
        return adapter

    return register


def register_signature(shapes: Mapping[str, str]) -> Callable[[type[StateSpaceAdapter]], type[StateSpaceAdapter]]:
    """Register an adapter class for every layer that holds tensors of these names and shapes, whatever its class.

    `shapes` maps names inside the layer (dots for nested modules) to shapes such as "n", "n m complex" or "n m 2", or
    to "module" (see `Signature`). For the many copies of one layer under different names; a qualified name goes before
    a signature. As equal names may mean different things, what the adapter reads is verified against the layer's
    forward pass.

    Raises AdapterError where those shapes have another adapter already, or the decorated class is no adapter.
    """
    signature = Signature.of(shapes)

    def register(adapter: type[StateSpaceAdapter]) -> type[StateSpaceAdapter]:
        instance = _instance(adapter, repr(adapter))
        known = _signatures.get(signature)
        if known is not None and _name(type(known)) != _name(adapter):
            raise AdapterError(
                f"Layers that hold {signature} have the adapter {_name(type(known))} already; register the layer by "
                f"its qualified name, or pass adapters={{Layer: {adapter.__name__}()}} for a call."
            )
        _signatures[signature] = instance
        return adapter

    return register


def find_adapter(layer: nn.Module, adapters: Adapters | None = None) -> StateSpaceAdapter | None:
    """The adapter of a layer, or None: first `adapters`, then registered names, both along the class's MRO; then the
    signature with the most tensors, of those the one that leaves the fewest sizes open.
    """
    given, adapter = _given(layer, adapters)
    return adapter if given else _known(layer)


def _given(layer: nn.Module, adapters: Adapters | None) -> tuple[bool, StateSpaceAdapter | None]:
    for kind in type(layer).__mro__:
        if adapters is not None and kind in adapters:
            return True, adapters[kind]
    return False, None


def _known(layer: nn.Module) -> StateSpaceAdapter | None:
    for kind in type(layer).__mro__:
        adapter = _registered.get(_name(kind))
        if adapter is None and _name(kind) in _entry_points():
            adapter = _load(_entry_points()[_name(kind)])
        if adapter is not None:
            return adapter
    found = [(signature, adapter) for signature, adapter in _signatures.items() if signature.matches(layer)]
    return max(found, key=lambda pair: (len(pair[0].shapes), -pair[0].freedom()))[1] if found else None


def find_layers(model: nn.Module, adapters: Adapters | None = None) -> list[LayerRef]:
    """All layers of a model that have an adapter, each module once, in the order of `named_modules`.

    A layer inside a layer with an adapter belongs to the outer one; one whose class `adapters` maps to None is left
    out with all that is inside.
    """
    check_adapters(adapters)
    require_kind("model", model, nn.Module, error=AdapterError)
    return list(_walk(uncompiled(model), "", adapters, set()))


def check_adapters(adapters: Adapters | None) -> None:
    """Raise AdapterError unless `adapters` maps layer classes to adapter instances or None."""
    if adapters is not None and not isinstance(adapters, Mapping):
        raise AdapterError(f"adapters is {adapters!r}; wanted a mapping {{Layer: Adapter()}}.")
    for kind, adapter in (adapters or {}).items():
        if not (isinstance(kind, type) and (adapter is None or isinstance(adapter, StateSpaceAdapter))):
            raise AdapterError(
                f"adapters maps {kind!r} to {adapter!r}; wanted {{Layer: Adapter()}} with an instance, or None to "
                f"leave the layer alone."
            )


def _walk(module: nn.Module, name: str, adapters: Adapters | None, seen: set[int]) -> Iterator[LayerRef]:
    if id(module) in seen:
        return
    seen.add(id(module))
    given, adapter = _given(module, adapters)
    adapter = adapter if given else _known(module)
    if adapter is not None:
        yield LayerRef(name, module, adapter)
    if given or adapter is not None:
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, adapters, seen)


@cache
def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise AdapterError(
                f"Two installed packages give an adapter for {entry.name}: {known.value} and {entry.value}. Uninstall "
                f"one of them."
            )
    return found


@cache
def _load(entry: EntryPoint) -> StateSpaceAdapter:
    where = f"The entry point {entry.name} = {entry.value}"
    try:
        adapter = entry.load()
    except (ImportError, AttributeError) as error:
        raise AdapterError(f"{where} cannot be loaded: {error}. Update or uninstall the package it is from.") from error
    return _instance(adapter, where)


def _instance(adapter: object, what: str) -> StateSpaceAdapter:
    if not (isinstance(adapter, type) and issubclass(adapter, StateSpaceAdapter)):
        raise AdapterError(f"{what} is not a StateSpaceAdapter class; subclass it and write read and write.")
    if isabstract(adapter):
        missing = ", ".join(sorted(adapter.__abstractmethods__))
        raise AdapterError(f"{what} does not define {missing}; a StateSpaceAdapter has to.")
    return adapter()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
