"""`structure.json`: what it holds, how it is written, and how a foreign or altered one is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from compressm.errors import CheckpointError

FORMAT = "compressm checkpoint"
VERSION = 1
MODEL, TRAINING, STRUCTURE = "model.safetensors", "training.safetensors", "structure.json"
FILES = (MODEL, TRAINING, STRUCTURE)
MAX_STRUCTURE_BYTES = 1 << 28


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorInfo:
        """Those of `tensor`."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def is_complex(self) -> bool:
        """Whether the dtype is complex."""
        return self.dtype.startswith("complex")

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


@dataclass(frozen=True)
class FileInfo:
    """Size and checksum of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileInfo:
        """Those of a file with this content."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class CheckpointStructure:
    """What a checkpoint holds: versions, orders, tensors, and the caller's `extra`.

    `orders` gives each compressible layer's order (None where its weights were not finite), `tensors` the model's
    tensors by name, `aliases` further names of shared ones, `derived` those that a state dict leaves out. The trees of
    optimizers, schedulers, compressor and random state refer to tensors in `training.safetensors`; `load_checkpoint`
    reads them.
    """

    library_version: str
    torch_version: str
    orders: Mapping[str, int | None]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    derived: frozenset[str]
    extra: dict[str, Any]
    training_tensors: Mapping[str, TensorInfo] = field(repr=False)
    modules: Mapping[str, Any] = field(repr=False)
    optimizers: list[Any] | None = field(repr=False)
    schedulers: list[Any] | None = field(repr=False)
    compressor: Any = field(repr=False)
    random_state: Any = field(repr=False)
    files: Mapping[str, FileInfo] = field(repr=False)
    version: int = VERSION


def to_json(structure: CheckpointStructure) -> bytes:
    """The content of `structure.json`."""
    body = {
        "library": structure.library_version,
        "torch": structure.torch_version,
        "files": {name: {"bytes": info.size, "sha256": info.sha256} for name, info in structure.files.items()},
        "layers": {name: {"order": order} for name, order in structure.orders.items()},
        "model": {name: _info_to_json(info) for name, info in structure.tensors.items()},
        "aliases": dict(structure.aliases),
        "derived": sorted(structure.derived),
        "training": {name: _info_to_json(info) for name, info in structure.training_tensors.items()},
        "modules": structure.modules,
        "optimizers": structure.optimizers,
        "schedulers": structure.schedulers,
        "compressor": structure.compressor,
        "random": structure.random_state,
        "extra": structure.extra,
    }
    return _dump({"format": FORMAT, "version": structure.version, "digest": _digest(body), "body": body})


def from_json(data: bytes, where: str) -> CheckpointStructure:
    """The structure in `structure.json`, `extra` still encoded.

    Raises CheckpointError where it is not JSON, not this library's, of a newer version, altered, or malformed.
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        canonical = _dump(document)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}. Use another checkpoint.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{where} was not written by compressm; wanted \"format\": \"{FORMAT}\".")  # fmt: skip
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"{where}: the format's version is {version!r}; wanted {VERSION}. Use another checkpoint."
        )
    if version > VERSION:
        raise CheckpointError(
            f"{where} has format version {version}; this library reads up to {VERSION}. Update compressm."
        )
    body = document.get("body")
    if not isinstance(body, dict) or canonical != data or document.get("digest") != _digest(body):
        raise CheckpointError(f"{where} was altered or damaged: its checksum does not fit. Use another checkpoint.")
    try:
        return _parse(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is malformed at {error}. Use another checkpoint.") from error


def _parse(body: dict[str, Any]) -> CheckpointStructure:
    files = {name: FileInfo(_size(entry["bytes"]), _text(entry["sha256"])) for name, entry in body["files"].items()}
    if files.keys() != {MODEL, TRAINING}:
        raise ValueError(f"its files {sorted(files)}; wanted {MODEL} and {TRAINING}")
    orders = {name: None if e["order"] is None else _size(e["order"]) for name, e in body["layers"].items()}
    tensors = {name: _info_from_json(entry) for name, entry in body["model"].items()}
    aliases = {name: _text(target) for name, target in body["aliases"].items()}
    if dangling := sorted(set(aliases.values()) - tensors.keys()) or sorted(aliases.keys() & tensors.keys()):
        raise ValueError(f"its shared tensors {dangling}")
    if not isinstance(body["optimizers"], list | None) or not isinstance(body["schedulers"], list | None):
        raise ValueError("its optimizers or schedulers")
    if not isinstance(body["extra"], dict) or not isinstance(body["modules"], dict):
        raise ValueError("its extra values")
    return CheckpointStructure(
        library_version=_text(body["library"]),
        torch_version=_text(body["torch"]),
        orders=orders,
        tensors=tensors,
        aliases=aliases,
        derived=frozenset(_text(name) for name in body["derived"]),
        extra=body["extra"],
        training_tensors={name: _info_from_json(entry) for name, entry in body["training"].items()},
        modules=body["modules"],
        optimizers=body["optimizers"],
        schedulers=body["schedulers"],
        compressor=body["compressor"],
        random_state=body["random"],
        files=files,
    )


def _info_to_json(info: TensorInfo) -> dict[str, Any]:
    return {"shape": list(info.shape), "dtype": info.dtype}


def _info_from_json(entry: dict[str, Any]) -> TensorInfo:
    if not isinstance(entry["shape"], list):
        raise ValueError(f"the shape {entry['shape']!r}")
    return TensorInfo(tuple(_size(n) for n in entry["shape"]), _text(entry["dtype"]))


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"the size {value!r}; wanted an integer of 0 or more")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the value {value!r}; wanted a text")
    return value


def _digest(body: Any) -> str:
    return hashlib.sha256(_dump(body)).hexdigest()


def _dump(document: Any) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("ascii")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
