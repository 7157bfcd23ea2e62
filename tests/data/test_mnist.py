"""Sequential MNIST from idx files: small stand-ins in the same format, and the real files where they are at hand."""

import gzip
import hashlib
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from compressm.data import load_smnist, mnist
from compressm.data.download import RemoteFile
from compressm.data.idx import parse_idx
from compressm.errors import DataError

GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "train_x": GENERATOR.integers(0, 256, (240, 28, 28), dtype=np.uint8),
    "train_y": np.arange(240, dtype=np.uint8) % 10,
    "test_x": GENERATOR.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "test_y": np.arange(20, dtype=np.uint8) % 10,
}


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Small files in place of the official ones, an empty cache and no COMPRESSM_DATA."""
    contents = {key: _idx(array) for key, array in ARRAYS.items()}
    files = {
        key: RemoteFile(mnist.FILES[key].name, len(content), hashlib.sha256(content).hexdigest())
        for key, content in contents.items()
    }
    monkeypatch.setattr(mnist, "FILES", files)
    monkeypatch.delenv("COMPRESSM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {files[key].name: content for key, content in contents.items()}


def _is_small(dataset) -> bool:
    return np.array_equal(dataset.test.x.values, ARRAYS["test_x"].reshape(-1, 784, 1))


@pytest.mark.parametrize("packed", [True, False])
def test_files_of_the_data_folder(small, monkeypatch, tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, content in small.items():
        file = folder / (f"{name}.gz" if packed else name)
        file.write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path / "data"))
    dataset = load_smnist()
    assert [split.cases for split in dataset.splits()] == [220, 20, 20]
    assert _is_small(dataset)
    assert dataset.test.y.tolist() == ARRAYS["test_y"].tolist()
    assert np.bincount(dataset.validation.y).tolist() == [2] * 10


def test_a_damaged_file_of_the_data_folder_is_named(small, monkeypatch, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, content in small.items():
        (folder / name).write_bytes(content[:-1] + b"!")
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match="train-images-idx3-ubyte has the SHA-256"):
        load_smnist()


def test_without_files_they_are_downloaded_into_the_cache_once(small, monkeypatch, tmp_path: Path) -> None:
    from data_test_server import serving

    started: list[str] = []

    def progress(name: str):
        started.append(name)
        return lambda received, announced: None

    class ByName(dict):
        """What the server sends depends on the path."""

    with serving(b"", b"") as server:
        handler = server.RequestHandlerClass

        def get(self) -> None:
            name = self.path.rpartition("/")[2].removesuffix(".gz")
            server.requests.append(name)
            packed = gzip.compress(small[name])
            self._send(packed, len(packed))

        monkeypatch.setattr(handler, "do_GET", get)
        monkeypatch.setattr(mnist, "MIRRORS", (server.mirror("anything"),))
        assert _is_small(load_smnist(progress=progress))
        assert _is_small(load_smnist(progress=progress))
        assert sorted(server.requests) == sorted(started) == sorted(small)
    assert sorted(p.name for p in (tmp_path / "cache" / "compressm" / "mnist").iterdir()) == sorted(small)


@pytest.mark.parametrize("place", ["cache", "named"])
def test_without_files_and_mirrors_the_message_says_where_to_put_them(
    small, monkeypatch, tmp_path: Path, place: str
) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/closed",))
    with pytest.raises(DataError, match=r"into (\S+) yourself, or into (mnist)/ of .* COMPRESSM_DATA") as caught:
        load_smnist()
    said = re.search(r"into (\S+) yourself, or into (\w+)/", str(caught.value))
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path / "named"))
    folder = Path(said[1]) if place == "cache" else tmp_path / "named" / said[2]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in small.items():
        (folder / name).write_bytes(content)
    assert _is_small(load_smnist())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x1f\x8b\x08\x00", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "has 11 bytes, wanted 13"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", "wanted"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_idx(content, "file")


_REAL = Path(os.environ.get("COMPRESSM_DATA", "")) / "mnist" / "train-images-idx3-ubyte.gz"


@pytest.mark.skipif(not os.environ.get("COMPRESSM_DATA") or not _REAL.is_file(), reason="MNIST is not at hand")
def test_the_real_files() -> None:
    dataset = load_smnist()
    assert [split.cases for split in dataset.splits()] == [55_000, 5_000, 10_000]
    assert np.bincount(dataset.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.normalisation.shift[0] / 255 == pytest.approx(0.13066, abs=5e-4)
