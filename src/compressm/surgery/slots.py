"""Find the tensors and attributes that an update names, and refuse those that cannot be replaced in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import getattr_static

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from compressm.errors import SurgeryError


@dataclass(frozen=True, eq=False)
class TensorSlot:
    """A tensor of a layer that can be replaced in place, and how messages call it."""

    label: str
    tensor: Tensor
    is_parameter: bool


@dataclass(frozen=True, eq=False)
class AttributeSlot:
    """An attribute of a module that can be set."""

    owner: nn.Module
    name: str

    def assign(self, value: object) -> None:
        """Set the attribute."""
        setattr(self.owner, self.name, value)

    def restorer(self) -> Callable[[], None]:
        """A function that sets the attribute back to what it is now."""
        if self.name in vars(self.owner) or isinstance(getattr_static(self.owner, self.name), property):
            return partial(setattr, self.owner, self.name, getattr(self.owner, self.name))
        return partial(delattr, self.owner, self.name)


def find_tensor(layer_name: str, layer: nn.Module, name: str) -> TensorSlot:
    """The parameter, buffer or plain tensor attribute `name` (dots for nested modules) of a layer.

    Raises SurgeryError where there is none or it cannot be replaced in place.
    """
    owner, leaf = _owner(layer_name, layer, name)
    label = f"Layer '{layer_name}': '{name}'"
    for kind, is_parameter in ((owner._parameters, True), (owner._buffers, False), (vars(owner), False)):
        tensor = kind.get(leaf)
        if isinstance(tensor, Tensor):
            require_swappable(label, tensor)
            return TensorSlot(label, tensor, is_parameter)
    if leaf in getattr(owner, "parametrizations", ()):
        raise SurgeryError(
            f"{label} is computed by a parametrization; call "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{leaf}') first."
        )
    raise SurgeryError(f"{label} is not a parameter, buffer or tensor attribute of {type(owner).__name__}.")


def find_attribute(layer_name: str, layer: nn.Module, name: str) -> AttributeSlot:
    """The attribute `name` (dots for nested modules) of a layer; SurgeryError where there is none to set."""
    owner, leaf = _owner(layer_name, layer, name)
    label = f"Layer '{layer_name}': attribute '{name}'"
    if leaf in owner._parameters or leaf in owner._buffers or leaf in owner._modules:
        raise SurgeryError(f"{label} is a parameter, buffer or module; give new tensors under `tensors`.")
    try:
        static = getattr_static(owner, leaf)
    except AttributeError as error:
        raise SurgeryError(f"{label} does not exist on {type(owner).__name__}.") from error
    if isinstance(static, property) and static.fset is None:
        raise SurgeryError(f"{label} is a read-only property; an update must name what it is computed from.")
    if isinstance(static, Tensor):
        raise SurgeryError(f"{label} is a tensor; give its new value under `tensors`.")
    return AttributeSlot(owner, leaf)


def require_swappable(label: str, tensor: Tensor) -> None:
    """Raise SurgeryError, with the remedy, where `tensor.set_(...)` would fail or be undone behind our back."""
    reason = _obstacle(tensor)
    if reason is not None:
        raise SurgeryError(f"{label} {reason}")


def _owner(layer_name: str, layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return layer.get_submodule(path), leaf
    except AttributeError as error:
        raise SurgeryError(
            f"Layer '{layer_name}': '{name}' does not exist, {type(layer).__name__} has no submodule '{path}'."
        ) from error


def _obstacle(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "is not initialised yet; run one forward pass before the cut."
    sharded = any(cls.__module__.startswith("torch.distributed") for cls in type(tensor).__mro__)
    if sharded or getattr(tensor, "_is_flat_param", False):
        return "is sharded over processes; cut the plain model first, then shard it."
    if hasattr(tensor, "ds_id"):
        return "is partitioned by DeepSpeed; cut the plain model before deepspeed.initialize()."
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, whose memory lies elsewhere; cut before it is quantised or wrapped."
    if tensor.is_meta:
        return "is on the meta device and holds no values; materialise the model first."
    if tensor.is_inference():
        return "was made in torch.inference_mode(); make or load the model outside of it."
    if not tensor.is_leaf:
        return "is computed from other tensors; an update must name those."
    if tensor.layout is not torch.strided:
        return f"has layout {tensor.layout}; only dense tensors can be resized."
    return None
