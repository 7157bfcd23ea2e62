"""Packages that only an integration needs."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from compressm.errors import MissingDependencyError


def require(what: str, extra: str, *names: str) -> ModuleType:
    """The first module of these that is imported already, else the first that is installed.

    Raises MissingDependencyError, naming the extra, where none is.
    """
    loaded = next((name for name in names if name in sys.modules), None)
    chosen = loaded or next((name for name in names if find_spec(name.partition(".")[0]) is not None), None)
    if chosen is None:
        raise MissingDependencyError(f"{what} is not installed: pip install 'compressm[{extra}]'.")
    return import_module(chosen)
