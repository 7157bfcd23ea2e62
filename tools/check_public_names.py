"""Every public module, class, function and method has a docstring; every name of the package is in docs/api."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "compressm"
API = ROOT / "docs" / "api"


def main() -> int:
    """List what is missing; 1 where anything is."""
    missing = [*undocumented(), *unlisted()]
    print("\n".join(missing) if missing else "every public name is documented")
    return 1 if missing else 0


def undocumented() -> Iterator[str]:
    """Public definitions in the sources without a docstring, as `file:line: name`; overrides inherit theirs."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    contracts = {
        node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    for path, tree in trees.items():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        where = path.relative_to(ROOT)
        if ast.get_docstring(tree) is None:
            yield f"{where}:1: the module has no docstring"
        for line, name in _without_docstring(tree.body, None, contracts):
            yield f"{where}:{line}: {name} has no docstring"


def _without_docstring(
    body: list[ast.stmt], owner: ast.ClassDef | None, contracts: dict[str, ast.ClassDef]
) -> Iterator[tuple[int, str]]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_overload_or_setter(node):
            continue
        inherited = owner is not None and _documented_in_base(node.name, owner, contracts)
        if ast.get_docstring(node) is None and not inherited:
            yield node.lineno, f"{owner.name}.{node.name}" if owner else node.name
        if isinstance(node, ast.ClassDef):
            yield from _without_docstring(node.body, node, contracts)


def _documented_in_base(method: str, owner: ast.ClassDef, contracts: dict[str, ast.ClassDef]) -> bool:
    for base in owner.bases:
        contract = contracts.get(ast.unparse(base).rsplit(".", 1)[-1])
        if contract is None or contract is owner:
            continue
        if any(
            isinstance(n, ast.FunctionDef) and n.name == method and ast.get_docstring(n) is not None
            for n in contract.body
        ):
            return True
        if _documented_in_base(method, contract, contracts):
            return True
    return False


def _is_overload_or_setter(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = {ast.unparse(decorator).rsplit(".", 1)[-1] for decorator in node.decorator_list}
    return bool(decorators & {"overload", "setter", "deleter"})


def unlisted() -> Iterator[str]:
    """Names that `compressm` exports but no page of docs/api shows, itself or through its module."""
    package = importlib.import_module("compressm")
    shown = {m for page in API.rglob("*.md") for m in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)}
    for name in package.__all__:
        module = getattr(getattr(package, name), "__module__", None)
        homes = {f"compressm.{name}", str(module), f"{module}.{name}"}
        if not homes & shown:
            yield f"docs/api: compressm.{name} (of {module}) is on no page"


if __name__ == "__main__":
    sys.exit(main())
