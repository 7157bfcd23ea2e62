"""Files to serve."""

import gzip
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compressm.data.download import RemoteFile

_spec = importlib.util.spec_from_file_location("data_test_server", Path(__file__).with_name("server.py"))
_server = importlib.util.module_from_spec(_spec)
sys.modules["data_test_server"] = _server
_spec.loader.exec_module(_server)

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def content() -> bytes:
    return CONTENT


@pytest.fixture
def remote() -> RemoteFile:
    return RemoteFile("some-file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator["_server.Server"]:
    with _server.serving(gzip.compress(CONTENT), gzip.compress(CONTENT[::-1])) as running:
        yield running
