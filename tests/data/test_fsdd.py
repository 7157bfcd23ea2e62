"""Spoken digits, from a clone's recordings or packed."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from compressm.data import Scaling, Task, load_dataset
from compressm.data.fsdd import LONGEST
from compressm.errors import DataError


def write_wave(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def clips() -> dict[tuple[int, str, int], np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        (digit, speaker, take): rng.integers(-3000, 3000, 20 + 3 * take).astype(np.int16)
        for digit in range(10)
        for speaker in ("anna", "be_n")
        for take in range(12)
    }


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: dict) -> Path:
    monkeypatch.setenv("COMPRESSM_DATA", str(tmp_path))
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for (digit, speaker, take), samples in clips.items():
        write_wave(folder / f"{digit}_{speaker}_{take}.wav", samples)
    return folder


def test_a_clone(clone: Path, clips: dict) -> None:
    dataset = load_dataset("fsdd", scaling=Scaling.NONE)
    assert dataset.task is Task.CLASSIFY and dataset.ragged and dataset.outputs == 10
    assert [split.cases for split in dataset.splits()] == [126, 14, 100]
    order = [key for key in sorted(clips) if key[2] < 5]
    np.testing.assert_array_equal(dataset.test.x.values[:, 0], np.concatenate([clips[key] for key in order]))
    np.testing.assert_array_equal(dataset.test.y, [key[0] for key in order])
    assert set(np.bincount(dataset.validation.y)) <= {1, 2}


def test_packed_is_the_same(clone: Path, clips: dict) -> None:
    plain = load_dataset("fsdd").fingerprint()
    keys = sorted(clips)
    np.savez(
        clone.parent / "fsdd.npz",
        waveforms=np.concatenate([clips[key] for key in keys]),
        offsets=np.cumsum([0] + [len(clips[key]) for key in keys]),
        labels=np.array([key[0] for key in keys], dtype=np.uint8),
        is_test=np.array([key[2] < 5 for key in keys]),
    )
    assert load_dataset("fsdd").fingerprint() == plain


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.array(["a"] * 20)}, "labels is <U1 .20,.; wanted numbers of shape .20,."),
        ({"offsets": np.array([0, 2, 4])}, "offsets is int64 .3,.; wanted numbers of shape .21,."),
        ({"labels": np.full(20, 10)}, "fsdd, .* split: a case has the class 10; wanted 0 to 9"),
    ],
)
def test_what_is_wrong_in_a_packed_set_is_said(clone: Path, changed: dict, message: str) -> None:
    sound = {"waveforms": np.arange(40), "offsets": np.arange(0, 41, 2), "labels": np.arange(20) % 2}
    np.savez(clone.parent / "fsdd.npz", **{**sound, "is_test": np.arange(20) > 15, **changed})
    with pytest.raises(DataError, match=message):
        load_dataset("fsdd")


def test_a_long_clip_is_cut_off(clone: Path) -> None:
    write_wave(clone / "3_anna_0.wav", np.ones(LONGEST + 5))
    assert load_dataset("fsdd").max_length == LONGEST


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "noise.wav").write_bytes(b""), "is not called"),
        (lambda folder: (folder / "0_anna_0.wav").write_bytes(b"RIFF"), "0_anna_0.wav cannot be read"),
        (lambda folder: write_wave(folder / "0_anna_0.wav", np.ones(9), rate=16000), "wanted .1, 2, 8000."),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no .wav files.*Clone github"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(spoil, message: str, clone: Path) -> None:
    spoil(clone)
    with pytest.raises(DataError, match=message):
        load_dataset("fsdd")


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPRESSM_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"(?s)COMPRESSM_DATA \(not set\).*looked for.*cache.compressm.fsdd.*Clone github"
    ):
        load_dataset("fsdd")


@pytest.mark.skipif(
    not (Path(os.environ.get("COMPRESSM_DATA", "/nowhere")) / "fsdd").is_dir(), reason="needs COMPRESSM_DATA/fsdd"
)
def test_the_real_one() -> None:
    dataset = load_dataset("fsdd")
    assert [split.cases for split in dataset.splits()] == [2430, 270, 300]
    assert np.bincount(dataset.test.y).tolist() == [30] * 10
    assert 0.005 < sum((s.x.lengths == LONGEST).sum() for s in dataset.splits()) / 3000 < 0.01
