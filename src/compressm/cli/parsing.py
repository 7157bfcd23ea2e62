"""From plain mappings (YAML, flags, `key.sub=value`) to frozen dataclasses, with every key and type checked."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from compressm.errors import ConfigError

T = TypeVar("T")
Tree = dict[str, Any]


def build(cls: type[T], tree: Mapping[str, object], where: str = "") -> T:
    """An instance of the dataclass `cls` from nested mappings; keys left out take their defaults.

    Raises:
        ConfigError: a key is unknown (the message gives the nearest valid one), or a value has the wrong type.
    """
    kinds = _kinds(cls)
    values: dict[str, object] = {}
    for key, value in tree.items():
        path = f"{where}{key}"
        if key not in kinds:
            raise ConfigError(_unknown(str(key), where, kinds))
        kind = kinds[key]
        if is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path} is {value!r}; wanted a group of settings: {', '.join(_kinds(kind))}.")
            values[key] = build(kind, value, f"{path}.")
        else:
            values[key] = convert(kind, value, path)
    return cls(**values)


def convert(kind: Any, value: object, path: str) -> object:
    """`value` as the annotated type `kind`: a number, text, switch, Enum (by value), tuple, or one of these or None.

    Numbers written as text are read ("1e-3" is text in YAML 1.1). A switch is never taken for a number.

    Raises:
        ConfigError: the value is of another type.
    """
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        inner = [option for option in get_args(kind) if option is not type(None)]
        return convert(inner[0], value, path)
    if origin is tuple:
        return _tuple(get_args(kind), value, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, value, path)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        number = _number(value)
        if number is not None and (kind is float or number == int(number)):
            return kind(number)
    raise ConfigError(f"{path} is {value!r}; wanted {_describe(kind)}.")


def merge(*trees: Mapping[str, object]) -> Tree:
    """Nested mappings laid over each other; later ones win."""
    result: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            old = result.get(key)
            nested = isinstance(value, Mapping) and isinstance(old, Mapping)
            result[key] = merge(cast(Tree, old), cast(Tree, value)) if nested else value
    return result


def nest(dotted: Mapping[str, object]) -> Tree:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    result: Tree = {}
    for path, value in dotted.items():
        tree: Tree = {}
        node = tree
        *groups, last = path.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
        result = merge(result, tree)
    return result


def parse_assignments(assignments: Iterable[str]) -> Tree:
    """`key.sub=value` texts as nested mappings; values are read as YAML.

    Raises:
        ConfigError: an assignment has no "=", or its value is not YAML.
    """
    import yaml

    dotted: Tree = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {text!r} is no assignment; wanted key.sub=value, such as training.steps=500.")
        try:
            dotted[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: the value is not YAML: {error}") from error
    return nest(dotted)


def flatten(config: Any) -> Tree:
    """A dataclass as nested plain mappings that YAML and JSON can hold, the inverse of `build`."""
    tree: Tree = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            tree[field.name] = flatten(value)
        elif isinstance(value, Enum):
            tree[field.name] = value.value
        else:
            tree[field.name] = list(value) if isinstance(value, tuple) else value
    return tree


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence "Did you mean 'x'?", after a space, where a known name is near; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


@cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _unknown(key: str, where: str, kinds: Mapping[str, object]) -> str:
    candidates = {name: f"{where}{name}" for name in kinds}
    for group, kind in kinds.items():  # a key of a sub-group that was written without its group
        if is_dataclass(kind) and isinstance(kind, type):
            candidates |= {name: f"{where}{group}.{name}" for name in _kinds(kind) if name not in candidates}
    near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    hint = f" Did you mean {candidates[near[0]]!r}?" if near else f" Known are {', '.join(kinds)}."
    return f"Unknown setting {where + key!r}.{hint}"


def _tuple(kinds: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, int | float) and not isinstance(items, bool):
        items = [items]
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{path} is {value!r}; wanted a list such as 1,2.")
    variable = len(kinds) == 2 and kinds[1] is Ellipsis
    if not variable and len(items) != len(kinds):
        raise ConfigError(f"{path} is {value!r}; wanted {len(kinds)} values, found {len(items)}.")
    each = [kinds[0]] * len(items) if variable else kinds
    return tuple(convert(kind, item, path) for kind, item in zip(each, items, strict=True))


def _enum(kind: type[Enum], value: object, path: str) -> Enum:
    values = [str(member.value) for member in kind]
    if isinstance(value, str) and value in values:
        return kind(value)
    hint = nearest(value, values) if isinstance(value, str) else ""
    raise ConfigError(f"{path} is {value!r}; wanted one of {', '.join(values)}.{hint}")


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if isinstance(value, int):
        return value
    return number if number - number == 0 else None  # neither NaN nor infinite


def _describe(kind: Any) -> str:
    names = {int: "an integer", float: "a finite number", str: "text", bool: "true or false"}
    return names.get(kind, str(kind))
