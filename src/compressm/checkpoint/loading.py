"""Load a checkpoint: check everything, restore the cut shapes, then the values, or change nothing at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.adapters.uncompiled import uncompiled
from compressm.checkpoint.contents import kind_name, modules_with_state
from compressm.checkpoint.document import MODEL, TRAINING, CheckpointStructure, from_json
from compressm.checkpoint.fitting import Weights, fit_optimizer, fit_weights
from compressm.checkpoint.folder import as_path, locate, read_file, read_structure_file
from compressm.checkpoint.tensorfile import from_bytes
from compressm.checkpoint.tree import decode
from compressm.checks import require_kind
from compressm.errors import CheckpointError
from compressm.surgery.optimizer import Optimizers, as_sequence
from compressm.surgery.parameters import swap
from compressm.surgery.random_state import RandomState
from compressm.surgery.slots import find_attribute
from compressm.surgery.snapshot import Snapshot, Stateful

_MISFITS = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, RecursionError)


def read_structure(path: str | os.PathLike[str]) -> CheckpointStructure:
    """What the checkpoint at `path` holds, from `structure.json` alone.

    Raises CheckpointError where it is missing, altered, foreign or of a newer version.
    """
    return _structure(locate(as_path(path)))


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Optimizers | None = None,
    scheduler: Stateful | Sequence[Stateful] | None = None,
    compressor: Stateful | None = None,
    rng: bool | None = None,
    adapters: Adapters | None = None,
) -> dict[str, Any]:
    """Load the checkpoint at `path` in place and return its `extra`.

    `model` is built as for the saved run, at whatever orders; shapes that a cut changed are restored first. Of the
    rest, what is given is loaded. `rng` says whether to restore the random number generators: None does where they
    were saved.

    Raises CheckpointError, with everything as it was, where a file is missing, truncated, altered, foreign or of a
    newer version, where it does not fit what is given, or where something is asked for that was not saved.
    """
    folder = locate(as_path(path))
    require_kind("compressor", compressor, Stateful, type(None), error=CheckpointError)
    require_kind("rng", rng, bool, type(None), error=CheckpointError)
    structure = _structure(folder)
    model = uncompiled(model)
    layers = find_layers(model, adapters)
    stored = _tensors(folder, MODEL, structure)
    training = _tensors(folder, TRAINING, structure)
    weights = fit_weights(model, layers, structure, stored)
    try:
        parts = _decode(structure, model, weights, training, optimizer, scheduler, compressor, rng)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / TRAINING} or its description is malformed: {error!r}.") from error
    _commit(model, weights, structure, parts)
    return structure.extra


@dataclass(frozen=True, eq=False)
class _Parts:
    optimizers: list[tuple[Optimizer, dict[str, Any]]]
    stateful: list[tuple[Stateful, dict[str, Any]]]
    modules: list[tuple[nn.Module, Any]]
    random_state: RandomState | None


def _structure(folder: Path) -> CheckpointStructure:
    data = read_structure_file(folder)
    where = str(folder / "structure.json")
    structure = from_json(data, where)
    try:
        return replace(structure, extra=decode(structure.extra, {}, "extra"))
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested too deeply. Use another checkpoint.") from error


def _tensors(folder: Path, name: str, structure: CheckpointStructure) -> dict[str, Tensor]:
    infos = structure.tensors if name == MODEL else structure.training_tensors
    return from_bytes(read_file(folder, name, structure.files[name]), infos, str(folder / name))


def _decode(
    structure: CheckpointStructure,
    model: nn.Module,
    weights: Weights,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizers | None,
    scheduler: Stateful | Sequence[Stateful] | None,
    compressor: Stateful | None,
    rng: bool | None,
) -> _Parts:
    optimizers = [] if optimizer is None else list(as_sequence(optimizer))
    schedulers: list[Stateful] = []
    if scheduler is not None:
        schedulers = list(scheduler) if isinstance(scheduler, Sequence) else [scheduler]
    states = [
        (item, fit_optimizer(described, model, item, weights, tensors, f"optimizer {index}"))
        for index, (item, described) in enumerate(_paired("optimizer", optimizers, structure.optimizers))
    ]
    stateful: list[tuple[Stateful, dict[str, Any]]] = []
    for index, (item, described) in enumerate(_paired("scheduler", schedulers, structure.schedulers)):
        if described["kind"] != kind_name(item):
            raise CheckpointError(
                f"Scheduler {index} is a {described['kind']}, but a {kind_name(item)} is given. Make the same kind."
            )
        stateful.append((item, decode(described["state"], tensors, f"schedulers.{index}")))
    if compressor is not None:
        if structure.compressor is None:
            raise CheckpointError("The checkpoint holds no compressor; it was saved without one. Load without it.")
        stateful.append((compressor, decode(structure.compressor, tensors, "compressor")))
    if rng and structure.random_state is None:
        raise CheckpointError("The checkpoint holds no random states; it was saved with rng=False. Load without them.")
    random_state = None
    if rng is not False and structure.random_state is not None:
        random_state = RandomState.from_state_dict(decode(structure.random_state, tensors, "random"))
    own = modules_with_state(model)
    if own.keys() != structure.modules.keys():
        raise CheckpointError(f"Extra state is of modules {sorted(structure.modules)}; this model has {sorted(own)}.")
    modules = [(own[n], decode(node, tensors, f"{n}.extra_state")) for n, node in structure.modules.items()]
    return _Parts(states, stateful, modules, random_state)


def _paired(what: str, given: Sequence[Any], described: list[Any] | None) -> list[tuple[Any, Any]]:
    if not given:
        return []
    if described is None or len(described) != len(given):
        found = 0 if described is None else len(described)
        raise CheckpointError(f"The checkpoint holds {found} {what}s, {len(given)} given. Give those of the saved run.")
    return list(zip(given, described, strict=True))


def _commit(model: nn.Module, weights: Weights, structure: CheckpointStructure, parts: _Parts) -> None:
    before = Snapshot.take(model, [o for o, _ in parts.optimizers], [item for item, _ in parts.stateful])
    old_extra = [(module, module.get_extra_state()) for module, _ in parts.modules]
    with ExitStack() as steps:
        steps.callback(before.restore)
        for module, old in old_extra:
            steps.callback(module.set_extra_state, old)
        try:
            _load_weights(model, weights, structure.orders, steps)
            for module, state in parts.modules:
                module.set_extra_state(state)
            for optimizer, state in parts.optimizers:
                _load_optimizer(optimizer, state)
            for item, state in parts.stateful:
                item.load_state_dict(state)
            if parts.random_state is not None:
                parts.random_state.restore()
        except _MISFITS as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"The checkpoint does not fit: {error!r}. Everything is as it was.") from error
        steps.pop_all()


def _load_weights(model: nn.Module, weights: Weights, orders: Mapping[str, int | None], steps: ExitStack) -> None:
    for named, value in weights.values:
        tensor = named.tensor
        if tensor.shape == value.shape:
            with torch.no_grad():
                tensor.copy_(value)
        else:
            swap(tensor, value.to(tensor.device, copy=True), steps)
    for parameter in model.parameters():
        parameter.grad = None
    for layer in weights.resized:
        _finish_layer(layer, orders.get(layer.name), steps)


def _finish_layer(layer: LayerRef, order: int | None, steps: ExitStack) -> None:
    if order is None:
        return
    for name, value in layer.adapter.prepare(layer.module, order).items():
        slot = find_attribute(layer.name, layer.module, name)
        steps.callback(slot.restorer())
        slot.assign(value)
    found = layer.adapter.read(layer.module).order
    if found != order:
        raise CheckpointError(
            f"Layer '{layer.name}' has order {found} with the stored tensors; wanted {order}. Use another checkpoint."
        )


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    optimizer.load_state_dict(state)
    # PyTorch casts state to the parameter's dtype; some optimizers keep wider state on purpose.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for key, value in entry.items():
            present = loaded.get(key)
            if isinstance(value, Tensor) and isinstance(present, Tensor) and present.dtype != value.dtype:
                loaded[key] = value.to(present.device, copy=True)
