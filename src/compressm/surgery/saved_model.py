"""A copy of what a model holds, to be put back in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressm.errors import SurgeryError
from compressm.surgery.copies import copied
from compressm.surgery.parameters import hold
from compressm.surgery.slots import require_swappable

_PLAIN = (bool, int, float, str, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # PyTorch's own, `training` among them


@dataclass(frozen=True, eq=False)
class _SavedTensor:
    tensor: Tensor
    value: Tensor
    grad: Tensor | None
    requires_grad: bool


@dataclass(frozen=True, eq=False)
class _SavedModule:
    module: nn.Module
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    unsaved_buffers: set[str]
    attributes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SavedModel:
    """Values and gradients of all tensors of a model, and the plain attributes of its modules."""

    tensors: dict[str, _SavedTensor]
    modules: dict[str, _SavedModule]

    @classmethod
    def take(cls, model: nn.Module) -> SavedModel:
        """Copy the tensors; the modules themselves are not copied."""
        modules = {name: _save_module(module) for name, module in model.named_modules()}
        tensors = {
            name: _SavedTensor(t, copied(t), None if t.grad is None else copied(t.grad), t.requires_grad)
            for name, t in _tensors(model)
        }
        return cls(tensors, modules)

    def restore(self) -> None:
        """Put values, shapes, gradients and attributes back into the same objects."""
        for name, saved in self.tensors.items():
            _require_same_kind(name, saved)
        new = {name: s.value.clone() for name, s in self.tensors.items() if s.tensor.shape != s.value.shape}
        for module in self.modules.values():
            _restore_module(module)
        for name, saved in self.tensors.items():
            _restore_tensor(saved, new.get(name))

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries of numbers, texts and tensors."""
        tensors = {n: {"value": s.value, "grad": s.grad, "trained": s.requires_grad} for n, s in self.tensors.items()}
        attributes = {
            name: {n: v for n, v in saved.attributes.items() if not isinstance(v, Tensor)}
            for name, saved in self.modules.items()
        }
        return {"tensors": tensors, "attributes": attributes}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], model: nn.Module) -> SavedModel:
        """The copy that `state_dict` described, for a model of the same structure whose shapes may differ.

        Raises SurgeryError where the model has other tensors.
        """
        present, described = dict(_tensors(model)), state["tensors"]
        if missing := sorted(dict(model.named_parameters()).keys() - described.keys()):
            raise SurgeryError(f"The snapshot is of another model: it lacks {', '.join(missing)}.")
        tensors = {
            name: _saved(name, t, entry) for name, t in present.items() if (entry := described.get(name)) is not None
        }
        modules: dict[str, _SavedModule] = {}
        for name, module in model.named_modules():
            now = _save_module(module)
            kept = {n: v for n, v in now.attributes.items() if isinstance(v, Tensor)}
            attributes = {**kept, **state["attributes"].get(name, {})}
            modules[name] = _SavedModule(module, now.parameters, now.buffers, now.unsaved_buffers, attributes)
        return cls(tensors, modules)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter, buffer and plain tensor attribute once, under its first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own = {n: v for n, v in vars(module).items() if n not in _OF_EVERY_MODULE}
        for name, tensor in {**own, **module._buffers, **module._parameters}.items():
            if isinstance(tensor, Tensor) and tensor.is_leaf and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}" if prefix else name, tensor


def _save_module(module: nn.Module) -> _SavedModule:
    own = {n: v for n, v in vars(module).items() if n not in _OF_EVERY_MODULE}
    attributes = {n: v for n, v in own.items() if _is_plain(v) or isinstance(v, Tensor)}
    unsaved: set[str] = set(module._non_persistent_buffers_set)
    return _SavedModule(module, dict(module._parameters), dict(module._buffers), unsaved, attributes)


def _restore_module(saved: _SavedModule) -> None:
    module = saved.module
    module._parameters.clear()
    module._parameters.update(saved.parameters)
    module._buffers.clear()
    module._buffers.update(saved.buffers)
    module._non_persistent_buffers_set = set(saved.unsaved_buffers)
    own = vars(module)
    own.update(saved.attributes)
    for name in [n for n, v in own.items() if _is_plain(v) and n not in saved.attributes and n not in _OF_EVERY_MODULE]:
        del own[name]


def _restore_tensor(saved: _SavedTensor, new: Tensor | None) -> None:
    tensor = saved.tensor
    tensor.grad = None
    if new is None:
        with torch.no_grad():
            tensor.copy_(saved.value)
    else:
        hold(tensor, new)
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.requires_grad_(saved.requires_grad)
    tensor.grad = None if saved.grad is None else saved.grad.clone()


def _require_same_kind(name: str, saved: _SavedTensor) -> None:
    tensor, value = saved.tensor, saved.value
    if tensor.dtype != value.dtype or tensor.device != value.device:
        raise SurgeryError(
            f"'{name}' is {tensor.dtype} on {tensor.device} now and was {value.dtype} on {value.device} when the "
            f"snapshot was taken; convert or move the model back before restoring."
        )
    if tensor.shape != value.shape:
        require_swappable(f"'{name}'", tensor)


def _saved(name: str, tensor: Tensor, entry: Mapping[str, Any]) -> _SavedTensor:
    value, grad, trained = entry["value"], entry["grad"], entry["trained"]
    fits = isinstance(value, Tensor) and value.dtype == tensor.dtype and value.ndim == tensor.ndim
    fits = fits and not value.is_meta and isinstance(trained, bool)
    if not fits or not (grad is None or (isinstance(grad, Tensor) and grad.shape == value.shape)):
        raise SurgeryError(f"The snapshot's '{name}' is damaged, or of another model; use another checkpoint.")
    return _SavedTensor(tensor, value.to(tensor.device), None if grad is None else grad.to(tensor.device), trained)


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(type(item) in _PLAIN for item in value))
