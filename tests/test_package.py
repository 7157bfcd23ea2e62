"""What a user of the bare package relies on: a quick import, no optional dependency, a version that agrees."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import compressm

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("typer", "click", "rich", "yaml", "matplotlib", "tensorboard", "sklearn", "scipy", "hypothesis", "pytest")
IMPORT_SECONDS = 0.5

PROBE = """
import json, sys, time
import numpy, torch
before = set(sys.modules)
start = time.process_time()
from compressm import *
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


def probe() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_is_quick() -> None:
    # Processor time, the best of three: a busy machine or a first compilation to bytecode must not count.
    assert min(float(str(probe()["seconds"])) for _ in range(3)) < IMPORT_SECONDS


def test_import_takes_no_optional_dependency() -> None:
    modules = probe()["modules"]
    assert isinstance(modules, list)
    assert "compressm" in modules
    assert not [name for name in modules if name.split(".")[0] in OPTIONAL]
    assert not [name for name in modules if name.startswith(("compressm.cli", "compressm.data", "compressm.testing"))]


def test_nothing_is_imported_before_it_is_used() -> None:
    code = """
import sys
import compressm
from compressm.cli.app import run
assert run(["--help"]) == run(["train", "--help"]) == 0
assert not {"torch", "numpy", "matplotlib", "rich.progress"} & set(sys.modules), sorted(sys.modules)
from compressm.layers.model import SequenceModel
assert compressm.layers.SequenceModel is SequenceModel
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_names_for_type_checkers_are_those_that_exist() -> None:
    """The imports that only type checkers see, beside the table that is used."""
    tree = ast.parse(Path(compressm.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    static = [(alias.asname, node.module) for node in block.body for alias in node.names]
    assert sorted(name for name, _ in static) == sorted(compressm.__all__)
    for name, module in static:
        assert getattr(compressm, name) is getattr(sys.modules[module], name)
        assert name in dir(compressm)
    with pytest.raises(AttributeError, match="'compressm' has no attribute 'nothing'"):
        _ = compressm.nothing


def test_version_is_the_project_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert compressm.__version__ == project["version"]
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_is_the_installed_ones() -> None:
    try:
        installed = metadata.version("compressm")
    except metadata.PackageNotFoundError:
        pytest.skip("compressm runs from its sources and is not installed")
    assert compressm.__version__ == installed


@pytest.mark.parametrize(
    "name",
    ["InTrainingCompressor", "analyze", "compress_"],
)
def test_the_readmes_names_are_exported(name: str) -> None:
    assert getattr(compressm, name).__module__.startswith("compressm.")


def test_typed() -> None:
    assert (Path(compressm.__file__).parent / "py.typed").is_file()
