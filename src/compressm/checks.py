"""Checks of what a caller gives; each error names the argument, what was found, and what is wanted."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import inf
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from compressm.errors import CompressmError, ConfigError

T = TypeVar("T")

LARGEST = 2**53
"""No count is larger: beyond it floating point arithmetic on counts is not exact, and no memory holds so much."""


def require_integer(name: str, value: object, least: int, *, most: int = LARGEST) -> None:
    """Raise ConfigError unless `value` is an integer, not a switch, from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upper = f" and at most {most}" if isinstance(value, int) and value > most else ""
        raise ConfigError(f"{name} is {brief(value)}; wanted an integer of {least} or more{upper}.")


def require_number(
    name: str, value: object, low: float, high: float = inf, *, wanted: str, above: bool = False, below: bool = False
) -> None:
    """Raise ConfigError unless `value` is a finite number, not a switch, from `low` to `high`.

    With `above` (`below`), `low` (`high`) itself is refused; `wanted` says in words what is allowed.
    """
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < inf
    if sound and isinstance(value, int | float):
        sound = (low < value if above else low <= value) and (value < high if below else value <= high)
    if not sound:
        raise ConfigError(f"{name} is {brief(value)}; wanted {wanted}.")


def require_kind(
    name: str, value: object, *kinds: type, wanted: str | None = None, error: type[CompressmError] = ConfigError
) -> None:
    """Raise `error` unless `value` is an instance of one of `kinds`."""
    if not isinstance(value, kinds):
        names = wanted or " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise error(f"{name} is {brief(value)}; wanted {names}.")


def require_each(name: str, values: object, kind: type, *, wanted: str) -> None:
    """Raise ConfigError unless `values` is a list or tuple of instances of `kind`."""
    require_kind(name, values, list, tuple, wanted=wanted)
    for value in values if isinstance(values, list | tuple) else ():
        require_kind(f"One of {name}", value, kind, wanted=wanted)


def brief(value: object) -> str:
    """`repr(value)`, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def read_record(kind: type[T], data: object, where: str) -> T:
    """The dataclass of numbers, texts, switches and tuples that `data` describes, every field checked.

    Lists are taken for tuples. Raises ConfigError where a field is missing, unknown, or of another type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {brief(data)}; wanted a mapping.")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(str(name) for name in data if name not in known):
        raise ConfigError(f"{where} has unknown fields {unknown}; wanted some of {list(known)}.")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in data]:
        raise ConfigError(f"{where} lacks {missing}; give the whole record.")
    hints = get_type_hints(kind)
    return kind(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _typed(hint: Any, value: object, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return None if value is None else _typed(inner[0], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(inner[0], item, where) for item in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else read_record(hint, value, where)
    number = isinstance(value, int) and not isinstance(value, bool)
    if (hint is float and number) or (hint is int and number) or (hint is not int and type(value) is hint):
        return value
    raise ConfigError(f"{where} is {brief(value)}; wanted {getattr(hint, '__name__', hint)}.")
