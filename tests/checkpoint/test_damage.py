"""Damaged, foreign and ill-fitting checkpoints give CheckpointError and leave everything as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressm.checkpoint import load_checkpoint, read_structure, save_checkpoint
from compressm.checkpoint.document import from_json
from compressm.errors import CheckpointError
from compressm.layers import LRU

FILES = ("model.safetensors", "training.safetensors", "structure.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("original") / "c"


@pytest.fixture
def saved(tmp_path, original, request) -> Path:
    """A fresh copy of a valid checkpoint of a cut run."""
    if not original.exists():
        request.getfixturevalue("cut_run").save(original, extra={"epoch": 1})
    shutil.copytree(original, tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture
def target(make_run) -> Any:
    run = make_run(seed=7)
    run.train(2)
    return run


@pytest.fixture
def refused(saved, target, equal) -> Callable[[str], None]:
    before = target.fingerprint()

    def check(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            target.load(saved)
        assert equal(target.fingerprint(), before)

    return check


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the structure and make its checksum fit again, as one who means harm would."""
    path = folder / "structure.json"
    document = json.loads(path.read_text())
    change(document)
    if isinstance(document.get("body"), dict):
        text = json.dumps(document["body"], indent=1) + "\n"
        document["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document, indent=1) + "\n")


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put another file in place, with size and checksum declared as they are."""
    (folder / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(folder, lambda d: d["body"]["files"].__setitem__(name, entry))


def test_the_copy_is_valid_and_rewriting_keeps_it_so(saved, target):
    rewrite(saved, lambda d: None)
    assert target.load(saved) == {"epoch": 1}


@pytest.mark.parametrize("name", FILES)
class TestBytes:
    def test_truncated_at_many_lengths(self, saved, target, equal, name):
        data, before = (saved / name).read_bytes(), target.fingerprint()
        for length in sorted({0, 1, 7, 8, 9, *range(0, len(data), max(1, len(data) // 25)), len(data) - 1}):
            (saved / name).write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=name):
                target.load(saved)
        assert equal(target.fingerprint(), before)

    def test_bits_flipped_at_many_places(self, saved, target, equal, name):
        data, before = (saved / name).read_bytes(), target.fingerprint()
        places = {*range(16), *range(0, len(data), max(1, len(data) // 60)), len(data) - 1}
        for number, place in enumerate(sorted(places)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << number % 8
            (saved / name).write_bytes(flipped)
            with pytest.raises(CheckpointError, match=name):
                target.load(saved)
        assert equal(target.fingerprint(), before)

    def test_longer(self, saved, refused, name):
        with (saved / name).open("ab") as stream:
            stream.write(b"\0")
        refused(name)

    def test_missing(self, saved, refused, name):
        (saved / name).unlink()
        refused(f"{name} cannot be read.*incomplete")

    def test_not_a_file(self, saved, refused, name):
        (saved / name).unlink()
        os.mkfifo(saved / name)
        refused(f"{name} is not an ordinary file")

    def test_unreadable(self, saved, refused, name, monkeypatch):
        from compressm.checkpoint import folder

        def opened(path: Path, mode: str) -> Any:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(folder, "open", opened, raising=False)
        refused("cannot be read: Permission denied")


def test_flipping_every_bit_of_a_small_structure(tmp_path):
    save_checkpoint(tmp_path / "c", nn.Linear(1, 1), rng=False)
    data = (tmp_path / "c" / "structure.json").read_bytes()
    from_json(data, "x")
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(CheckpointError):
                from_json(bytes(flipped), "x")


class TestForeign:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ('{"a":' * 100_000, "is not JSON"),
            ("9" * 10_000, "is not JSON"),
            ("[1e999]", "is not JSON"),
            ('{"size": NaN}', "NaN is no number"),
            ("[]", "not written by compressm"),
            ('{"model_type": "mamba"}', "not written by compressm"),
            ('{"format": "compressm checkpoint"}', "version is None"),
            ('{"format": "compressm checkpoint", "version": true}', "version is True"),
            ('{"format": "compressm checkpoint", "version": 1}', "altered or damaged"),
            ('{"format": "compressm checkpoint", "version": 1, "body": {}}', "altered or damaged"),
        ],
    )
    def test_other_json(self, saved, refused, text, message):
        (saved / "structure.json").write_text(text)
        refused(message)

    def test_not_text(self, saved, refused):
        (saved / "structure.json").write_bytes(b"\x80\x02}q\x00.")
        refused("is not JSON")

    def test_newer_version(self, saved, refused):
        rewrite(saved, lambda d: d.update(version=2))
        refused("Update compressm")

    def test_duplicate_keys_and_reformatted_json(self, saved, refused):
        text = (saved / "structure.json").read_text()
        (saved / "structure.json").write_text(json.dumps(json.loads(text)))
        refused("altered")

    def test_no_folder(self, tmp_path, target):
        with pytest.raises(CheckpointError, match="no such folder"):
            target.load(tmp_path / "absent")
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_structure(tmp_path)

    def test_a_huge_structure_is_not_read(self, saved, refused):
        os.truncate(saved / "structure.json", 1 << 40)  # sparse: no disk space is used
        refused("wanted at most")

    def test_a_huge_file_is_not_read(self, saved, refused):
        os.truncate(saved / "model.safetensors", 1 << 42)
        refused("model.safetensors has 4398046511104 bytes")


class TestTampered:
    """The checksums fit: only what is written in the files can tell."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda b: b["files"].update({"../x": b["files"]["model.safetensors"]}), r"its files"),
            (lambda b: b["files"].pop("training.safetensors"), "its files"),
            (lambda b: b["files"]["model.safetensors"].update(bytes=-1), "the size -1"),
            (lambda b: b["files"]["model.safetensors"].update(bytes=1 << 60), "wanted 1152921504606846976"),
            (lambda b: b["files"]["model.safetensors"].update(bytes=2.5), "the size 2.5"),
            (lambda b: b["files"]["model.safetensors"].update(sha256="0" * 64), "checksum"),
            (lambda b: b.update(files=None), "malformed"),
            (lambda b: b.pop("layers"), "malformed"),
            (lambda b: b.update(extra=[]), "malformed"),
            (lambda b: b.update(optimizers={}), "malformed"),
            (lambda b: b["model"]["encoder.weight"].update(shape=[1 << 40, 1 << 40]), "declares"),
            (lambda b: b["model"]["encoder.weight"].update(shape=[4, "2"]), "the size '2'"),
            (lambda b: b["model"]["encoder.weight"].update(shape=[4, True]), "the size True"),
            (lambda b: b["model"]["encoder.weight"].update(shape="42"), "the shape '42'"),
            (lambda b: b["model"]["encoder.weight"].update(dtype="int8"), "declares"),
            (lambda b: b["model"].pop("encoder.weight"), "on one side only"),
            (lambda b: b["model"].update({"../../x": {"shape": [1], "dtype": "float32"}}), "on one side only"),
            (lambda b: b["aliases"].update({"encoder.weight": "encoder.bias"}), "its shared tensors"),
            (lambda b: b["aliases"].update({"x": "y"}), "its shared tensors"),
            (lambda b: b["aliases"].update({"x": "encoder.bias"}), "has unknown x"),
            (lambda b: next(iter(b["layers"].values())).update(order=7), "order 3 with the stored tensors; wanted 7"),
            (lambda b: b["optimizers"][0].update(kind="x.Y"), r"is a x\.Y"),
            (lambda b: b["optimizers"][0].update(names=[[], []]), "groups of parameters"),
            (lambda b: b["optimizers"][0].update(groups=[]), "malformed"),
            (lambda b: b["optimizers"][0]["groups"][0].update(params=[0]), "names 1 of"),
            (lambda b: b["optimizers"][0].update(state={"$dict": [[999, {}]]}), "parameter 999"),
            (lambda b: b["optimizers"][0].update(state={"$dict": [[0, []]]}), "parameter 0"),
            (lambda b: b["optimizers"][0].pop("state"), "malformed"),
            (lambda b: b.update(optimizers=[]), "holds 0 optimizers, 1 given"),
            (lambda b: b.update(optimizers=[3]), "malformed"),
            (lambda b: b["schedulers"][0].update(kind="x.Y"), r"Scheduler 0 is a x\.Y"),
            (lambda b: b.update(schedulers=None), "holds 0 schedulers"),
            (lambda b: b.update(compressor=None), "holds no compressor"),
            (lambda b: b.update(compressor={}), "spectra"),
            (lambda b: b.update(compressor={"$import": "os"}), "unknown kind of value"),
            (lambda b: b["random"].pop("cpu"), "malformed"),
            (lambda b: b["random"].update(numpy=["PCG", *b["random"]["numpy"][1:]]), "does not fit"),
            (lambda b: b["random"].update(cpu=b["random"]["python"][1]), "does not fit"),
            (lambda b: b["modules"].update(encoder=1), "Extra state"),
        ],
    )  # fmt: skip
    def test_structure(self, saved, refused, change, message):
        rewrite(saved, lambda d: change(d["body"]))
        refused(message)

    def test_deep_nesting_in_a_valid_document(self, saved, refused):
        deep: Any = 1
        for _ in range(400):
            deep = [deep]
        rewrite(saved, lambda d: d["body"].update(compressor=deep))
        refused("spectra|indices|malformed|does not fit")

    def test_moments_of_another_shape(self, saved, refused, target):
        def shrink(body: dict[str, Any]) -> None:
            (_, entry), *_ = body["optimizers"][0]["state"]["$dict"]
            wrong = body["optimizers"][0]["state"]["$dict"][3][1]["exp_avg"]
            assert entry["exp_avg"] != wrong
            entry["exp_avg"] = wrong

        rewrite(saved, lambda d: shrink(d["body"]))
        refused("'exp_avg' of parameter 0 is")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 8,
            struct.pack("<Q", 1 << 62) + b"{}",
            struct.pack("<Q", 2) + b"{}",
            struct.pack("<Q", 2) + b"[]",
            *(
                struct.pack("<Q", len(header)) + header + b"\0" * 8
                for header in (
                    b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
                    b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}',
                    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
                    b'{"a":{"dtype":"EVIL","shape":[2],"data_offsets":[0,8]}}',
                    b'{"a":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}',
                    b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
                    b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
                )
            ),
        ],
    )
    @pytest.mark.parametrize("name", FILES[:2])
    def test_safetensors(self, saved, refused, name, data):
        replace_file(saved, name, data)
        refused(name)

    def test_a_pickle_in_place_of_tensors_is_not_run(self, saved, refused, tmp_path):
        code = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
        for name in FILES[:2]:
            replace_file(saved, name, code)
        refused("not a safetensors file")
        assert not (tmp_path / "ran").exists()


class TestMisfits:
    def test_another_model(self, saved, make_run, equal):
        for kw, message in (
            ({"blocks": 1}, "has unknown"),
            ({"blocks": 3}, "lacks"),
            ({"width": 6}, r"belongs to no layer with an adapter"),
            ({"outputs": 4}, "belongs to no layer with an adapter"),
            ({"layer": "dense"}, "lacks|has unknown"),
        ):
            run = make_run(**kw)
            before = run.fingerprint()
            with pytest.raises(CheckpointError, match=message):
                run.load(saved)
            assert equal(run.fingerprint(), before)

    def test_another_dtype(self, saved, target, equal):
        target.model.double()
        before = target.fingerprint()
        with pytest.raises(CheckpointError, match=r"model\.to\(torch\.float32\)"):
            target.load(saved)
        assert equal(target.fingerprint(), before)

    def test_a_layer_without_adapter_cannot_change_its_shape(self, tmp_path):
        class Own(nn.Module):
            def __init__(self, order: int) -> None:
                super().__init__()
                self.poles = nn.Parameter(torch.rand(order))

        save_checkpoint(tmp_path / "c", Own(3))
        own = Own(5)
        with pytest.raises(CheckpointError, match="register the layer's adapter"):
            load_checkpoint(tmp_path / "c", own)
        assert own.poles.shape == (5,)

    def test_shapes_that_contradict_each_other_are_taken_back(self, tmp_path):
        odd = LRU(3, 4)
        odd.C_re = nn.Parameter(torch.randn(3, 5))
        with pytest.MonkeyPatch.context() as patch:
            from compressm.checkpoint import saving

            patch.setattr(saving, "_order", lambda layer: 4)
            save_checkpoint(tmp_path / "c", odd)
        layer = LRU(3, 6)
        held = {n: (p.data_ptr(), p.shape) for n, p in layer.named_parameters()}
        with pytest.raises(CheckpointError, match="does not fit"):
            load_checkpoint(tmp_path / "c", layer)
        assert {n: (p.data_ptr(), p.shape) for n, p in layer.named_parameters()} == held

    def test_another_optimizer(self, saved, make_run, equal):
        run = make_run(make=torch.optim.AdamW)
        before = run.fingerprint()
        with pytest.raises(CheckpointError, match=r"is a torch.optim.adam.Adam, but a torch.optim.adamw.AdamW"):
            run.load(saved)
        assert equal(run.fingerprint(), before)

    def test_other_groups(self, saved, target):
        optimizer = torch.optim.Adam(target.model.parameters())
        with pytest.raises(CheckpointError, match="groups of parameters"):
            load_checkpoint(saved, target.model, optimizer=optimizer)

    def test_what_was_not_saved(self, tmp_path, target):
        save_checkpoint(tmp_path / "c", target.model, rng=False)
        load_checkpoint(tmp_path / "c", target.model)
        for kw, message in (
            ({"optimizer": target.optimizer}, "holds 0 optimizers"),
            ({"scheduler": target.scheduler}, "holds 0 schedulers"),
            ({"compressor": target.compressor}, "no compressor"),
            ({"rng": True}, "no random states"),
        ):
            with pytest.raises(CheckpointError, match=message):
                load_checkpoint(tmp_path / "c", target.model, **kw)

    def test_models_without_values(self, saved, make_run):
        with pytest.raises(CheckpointError, match="meta device"):
            load_checkpoint(saved, make_run().model.to("meta"))

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
    def test_anything_that_goes_wrong_while_loading_is_taken_back(self, saved, target, equal, error):
        before = target.fingerprint()
        original, calls = target.compressor.load_state_dict, []

        def failing(state: dict[str, Any]) -> None:
            calls.append(state)
            if len(calls) == 1:
                original(state)
                raise error
            original(state)

        target.compressor.load_state_dict = failing
        with pytest.raises(CheckpointError if isinstance(error, ValueError) else type(error)):
            target.load(saved)
        assert equal(target.fingerprint(), before)
        assert len(calls) == 2
