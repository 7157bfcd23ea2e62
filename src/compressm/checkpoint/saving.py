"""Save a model with everything that training needs to go on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.adapters.uncompiled import uncompiled
from compressm.checkpoint.contents import kind_name, model_tensors, modules_with_state, parameter_names
from compressm.checkpoint.document import MODEL, STRUCTURE, TRAINING, CheckpointStructure, FileInfo, TensorInfo, to_json
from compressm.checkpoint.folder import as_path, write_folder
from compressm.checkpoint.tensorfile import to_bytes
from compressm.checkpoint.tree import encode
from compressm.checks import require_kind
from compressm.errors import CheckpointError, CompressmError
from compressm.surgery.optimizer import Optimizers, as_sequence
from compressm.surgery.random_state import RandomState
from compressm.surgery.snapshot import Stateful


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Optimizers | None = None,
    scheduler: Stateful | Sequence[Stateful] | None = None,
    compressor: Stateful | None = None,
    extra: Mapping[str, Any] | None = None,
    rng: bool = True,
    adapters: Adapters | None = None,
) -> None:
    """Save to the folder `path`, whole or not at all; an earlier checkpoint there is replaced at the end.

    `optimizer` and `scheduler` may be sequences. `compressor` is anything with `state_dict` and `load_state_dict`.
    `extra` is the caller's own JSON-able dictionary, which `load_checkpoint` returns. With `rng` the states of
    PyTorch's, NumPy's and Python's global random number generators are saved too. One process at a time may save to
    one path.

    Raises CheckpointError where a state holds what cannot be stored without pickling, naming it, or where the file
    system refuses; an earlier checkpoint is then still valid.
    """
    place = as_path(path)
    _require_kinds(optimizer, scheduler, compressor, extra, rng)
    model = uncompiled(model)
    layers = find_layers(model, adapters)
    weights, aliases, derived = _weights(model, layers)
    training: dict[str, Tensor] = {}
    modules = {n: encode(m.get_extra_state(), f"{n}.extra_state", training) for n, m in _stateful_modules(model)}
    optimizers = None if optimizer is None else _optimizers(model, optimizer, training)
    schedulers = None if scheduler is None else _schedulers(scheduler, training)
    state = None if compressor is None else encode(compressor.state_dict(), "compressor", training)
    random_state = encode(RandomState.capture().state_dict(), "random", training) if rng else None
    files = {MODEL: to_bytes(weights), TRAINING: to_bytes(training)}
    structure = CheckpointStructure(
        library_version=_library_version(),
        torch_version=torch.__version__,
        orders={layer.name: _order(layer) for layer in layers},
        tensors={name: TensorInfo.of(tensor) for name, tensor in weights.items()},
        aliases=aliases,
        derived=derived,
        extra=encode(dict(extra or {}), "extra", None),
        training_tensors={name: TensorInfo.of(tensor) for name, tensor in training.items()},
        modules=modules,
        optimizers=optimizers,
        schedulers=schedulers,
        compressor=state,
        random_state=random_state,
        files={name: FileInfo.of(data) for name, data in files.items()},
    )
    write_folder(place, {**files, STRUCTURE: to_json(structure)})


def _require_kinds(optimizer: object, scheduler: object, compressor: object, extra: object, rng: object) -> None:
    stateful = list(scheduler) if isinstance(scheduler, Sequence) else [scheduler]
    for name, items, kind in (
        ("optimizer", list(optimizer) if isinstance(optimizer, Sequence) else [optimizer], Optimizer),
        ("scheduler", stateful, Stateful),
        ("compressor", [compressor], Stateful),
        ("extra", [extra], Mapping),
    ):
        for item in items:
            if item is not None:
                require_kind(name, item, kind, error=CheckpointError)
    require_kind("rng", rng, bool, error=CheckpointError)


def _weights(model: nn.Module, layers: Sequence[LayerRef]) -> tuple[dict[str, Tensor], dict[str, str], frozenset[str]]:
    weights: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    present = list(model_tensors(model, layers))
    for named in present:
        known = first.setdefault(id(named.tensor), named.name)
        if known == named.name:
            weights[named.name] = named.tensor
        else:
            aliases[named.name] = known
    return weights, aliases, frozenset(named.name for named in present if named.derived)


def _stateful_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(modules_with_state(model).items())


def _optimizers(model: nn.Module, optimizer: Optimizers, tensors: dict[str, Tensor]) -> list[Any]:
    described: list[Any] = []
    for index, item in enumerate(as_sequence(optimizer)):
        state = item.state_dict()
        where = f"optimizers.{index}"
        described.append(
            {
                "kind": kind_name(item),
                "names": parameter_names(model, item),
                "state": encode(state["state"], f"{where}.state", tensors),
                "groups": encode(state["param_groups"], f"{where}.param_groups", tensors),
            }
        )
    return described


def _schedulers(scheduler: Stateful | Sequence[Stateful], tensors: dict[str, Tensor]) -> list[Any]:
    items = scheduler if isinstance(scheduler, Sequence) else [scheduler]
    return [
        {"kind": kind_name(item), "state": encode(item.state_dict(), f"schedulers.{index}", tensors)}
        for index, item in enumerate(items)
    ]


def _order(layer: LayerRef) -> int | None:
    try:
        return layer.adapter.read(layer.module).order
    except CompressmError:  # a model that diverged can still be saved
        return None


def _library_version() -> str:
    try:
        return version("compressm")
    except PackageNotFoundError:
        return "unknown"
