"""The downloader against a server on this machine."""

import gzip
import time
from pathlib import Path

import pytest

from compressm.data.download import Limits, RemoteFile, download, read_checked
from compressm.errors import DataError

FAST = Limits(stall=0.4, total=0.8)


@pytest.mark.parametrize("kind", ["good", "chunks"])
def test_a_whole_file_is_unpacked_checked_and_put_in_place(server, remote, content, tmp_path: Path, kind: str) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(remote, [server.mirror(kind)], tmp_path / "new" / "folder", progress=lambda *s: seen.append(s))
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["some-file"]
    assert seen[-1][0] == len(server.packed)
    assert seen[-1][1] == (len(server.packed) if kind == "good" else None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "broke off|IncompleteRead"),
        ("short-silent", "ends early"),
        ("wrong", "SHA-256"),
        ("garbage", "not a sound gzip file"),
        ("missing", "404"),
        ("huge", "announces 1000000000000 bytes"),
        ("endless", "more than .* bytes came"),
        ("silent", "timed out"),
        ("drip", "took more than 0.8 s"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(server, remote, tmp_path: Path, kind: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        download(remote, [server.mirror(kind)], tmp_path, limits=FAST)
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in str(caught.value)


def test_the_next_mirror_is_tried_and_the_first_good_one_ends_the_search(server, remote, content, tmp_path) -> None:
    mirrors = [server.mirror(kind) for kind in ("missing", "wrong", "short", "good", "chunks")]
    assert download(remote, mirrors, tmp_path).read_bytes() == content
    assert server.requests == ["missing", "wrong", "short", "good"]


def test_a_host_that_does_not_answer_is_one_more_failure(server, remote, content, tmp_path: Path) -> None:
    mirrors = ["http://127.0.0.1:9/closed", "ftp://127.0.0.1/x", server.mirror("good")]
    assert download(remote, mirrors, tmp_path).read_bytes() == content


def test_an_earlier_file_is_replaced_only_by_a_whole_one(server, remote, content, tmp_path: Path) -> None:
    (tmp_path / "some-file").write_bytes(b"old")
    with pytest.raises(DataError):
        download(remote, [server.mirror("short")], tmp_path)
    assert (tmp_path / "some-file").read_bytes() == b"old"
    download(remote, [server.mirror("good")], tmp_path)
    assert (tmp_path / "some-file").read_bytes() == content


def test_what_unpacks_to_more_than_the_wanted_size_is_not_unpacked_further(remote, tmp_path: Path) -> None:
    from data_test_server import serving

    bomb = gzip.compress(bytes(200 * remote.size))
    with serving(bomb, b"") as server, pytest.raises(DataError, match=f"{remote.size + 1} bytes decompressed"):
        download(remote, [server.mirror("good")], tmp_path)


def test_local_copies_are_checked_too(remote, content, tmp_path: Path) -> None:
    plain, packed = tmp_path / "some-file", tmp_path / "some-file.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert read_checked(plain, remote) == read_checked(packed, remote) == content
    plain.write_bytes(content[:-1])
    packed.write_bytes(gzip.compress(content)[:-100])
    with pytest.raises(DataError, match=r"299999 bytes.*Delete it"):
        read_checked(plain, remote)
    with pytest.raises(DataError, match="sound gzip"):
        read_checked(packed, remote)
    plain.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataError, match=r"SHA-256.*Delete it"):
        read_checked(plain, remote)


def test_the_known_files_are_of_idx_sizes() -> None:
    from compressm.data.mnist import FILES

    assert FILES["train_x"].size == 16 + 60_000 * 28 * 28
    assert FILES["test_x"].size == 16 + 10_000 * 28 * 28
    assert FILES["train_y"].size == 8 + 60_000
    assert FILES["test_y"] == RemoteFile("t10k-labels-idx1-ubyte", 8 + 10_000, FILES["test_y"].sha256)
