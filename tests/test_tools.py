"""The repository's own checks must be able to fail."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def snippets() -> ModuleType:
    return load("check_snippets")


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_snippets_of_a_page_share_a_namespace(snippets: ModuleType, tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n\ntext\n\n    ```python\n    assert x == 1\n    ```\n"
    assert snippets.run_page(page(tmp_path, text))


def test_a_failing_snippet_is_named_with_its_line(
    snippets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not snippets.run_page(page(tmp_path, "# Title\n\n```python\nx = 1\nassert x == 2\n```\n"))
    assert "line 5" in capsys.readouterr().out


def test_a_warning_in_a_snippet_is_an_error(snippets: ModuleType, tmp_path: Path) -> None:
    assert not snippets.run_page(page(tmp_path, "```python\nimport warnings\nwarnings.warn('old')\n```\n"))


def test_a_snippet_with_a_reason_is_not_executed(snippets: ModuleType, tmp_path: Path) -> None:
    fence = "```python\nraise SystemError\n```\n"
    assert snippets.run_page(page(tmp_path, f"<!-- not executed: shows an error -->\n{fence}"))
    assert not snippets.run_page(page(tmp_path, f"<!-- not executed: -->\n{fence}"))


def test_nothing_of_a_page_stays_for_the_next_one(snippets: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for precision in ("bf16", "no"):
        code = (
            f"run = Accelerator(cpu=True, mixed_precision='{precision}')\nassert run.mixed_precision == '{precision}'"
        )
        assert snippets.run_page(page(tmp_path, f"```python\nfrom accelerate import Accelerator\n\n{code}\n```\n"))


def test_an_unknown_option_in_a_command_is_found(
    snippets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert snippets.run_page(page(tmp_path, "```bash\ncompressm train digits --seed 0\n```\n"))
    assert not snippets.run_page(page(tmp_path, "```bash\ncompressm train digits --sede 0\n```\n"))
    assert "--sede" in capsys.readouterr().out


def test_an_override_inherits_its_docstring() -> None:
    names = load("check_public_names")
    source = '''
class Base:
    """Contract."""

    def method(self):
        """What it does."""


class Leaf(Base):
    """An implementation."""

    def method(self): ...

    def other(self): ...
'''
    tree = ast.parse(source)
    contracts = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert [name for _, name in names._without_docstring(tree.body, None, contracts)] == ["Leaf.other"]


def test_a_layer_and_its_adapter_take_less_than_thirty_lines(snippets: ModuleType) -> None:
    text = (TOOLS.parent / "docs" / "howto" / "add-a-layer.md").read_text(encoding="utf-8")
    first = next(block for block in snippets.blocks(text) if block.language == "python")
    assert "nn.Module" in first.text and "StateSpaceAdapter" in first.text
    assert sum(bool(line.strip()) for line in first.text.splitlines()) < 30
