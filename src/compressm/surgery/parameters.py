"""Replace tensors and attributes of live layers in place, all of them or none.

`p.set_(new)` under `no_grad` changes what a parameter holds and keeps the parameter itself: optimizers, hooks, ties
and attributes stay valid. A graph recorded before the swap raises when it is run backward afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NoReturn

import torch
from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate
from compressm.errors import SurgeryError, TiedParametersError
from compressm.surgery.slots import AttributeSlot, TensorSlot, find_attribute, find_tensor

LayerItem = tuple[str, nn.Module, LayerUpdate]


class Undo:
    """Puts back what a surgery replaced; until it is dropped it keeps the old tensors in memory."""

    def __init__(self, steps: ExitStack) -> None:
        self._steps = steps

    def undo(self) -> None:
        """Put everything back, last change first. A second call does nothing."""
        self._steps.close()


def apply_update(layer: nn.Module, update: LayerUpdate) -> Undo:
    """Apply one layer's update in place; the same as `apply_updates` with that layer only."""
    return apply_updates([(type(layer).__name__, layer, update)])


def apply_updates(items: Sequence[LayerItem]) -> Undo:
    """Apply the updates `(name, layer, update)` of several layers in place, all or none.

    Each tensor an update names receives a contiguous copy of its new value, rounded to nearest in the tensor's own
    dtype, on its own device; a parameter's `grad` becomes None. The parameter stays the same object with its
    `requires_grad`, hooks, ties and attributes. Everything is checked before the first swap, and whatever interrupts
    the swaps undoes those already made.

    Raises SurgeryError where a name does not exist, a resized parameter has no map, a tensor cannot be swapped
    (sharded, meta, lazy, an inference tensor, a computed one) or a value does not fit or is not finite, and
    TiedParametersError where two updates give one shared tensor different values.
    """
    if torch.is_inference_mode_enabled():
        raise SurgeryError("Layers cannot be cut inside torch.inference_mode(); cut after leaving it.")
    tensors: dict[int, tuple[TensorSlot, Tensor]] = {}
    attributes: list[tuple[AttributeSlot, object]] = []
    for name, layer, update in items:
        require_maps(name, layer, update)
        for inner, value in update.tensors.items():
            slot = find_tensor(name, layer, inner)
            _add(tensors, slot, convert(value, slot))
        attributes += [(find_attribute(name, layer, inner), value) for inner, value in update.attributes.items()]
    with ExitStack() as steps:
        for slot, value in tensors.values():
            swap(slot.tensor, value, steps)
        for attribute, new in attributes:
            steps.callback(attribute.restorer())
            attribute.assign(new)
        return Undo(steps.pop_all())


def swap(tensor: Tensor, value: Tensor, steps: ExitStack) -> None:
    """Make `tensor` hold `value`'s memory, of whatever shape; pushes the way back onto `steps` first."""
    old, grad = tensor.detach(), tensor.grad
    steps.callback(_put_back, tensor, old, grad)
    _refuse_stale_graphs(tensor, steps)
    tensor.grad = None
    hold(tensor, value)


def hold(tensor: Tensor, value: Tensor) -> None:
    """Let `tensor` share the memory and the shape of `value`."""
    with torch.no_grad():
        tensor.set_(value)  # pyright: ignore[reportArgumentType]


def convert(value: Tensor, slot: TensorSlot) -> Tensor:
    """A contiguous copy of `value` in the dtype and on the device of the slot's tensor.

    Raises SurgeryError where the number of dimensions or the kind of number differs, or the value is not finite.
    """
    like, where = slot.tensor, slot.label
    if not isinstance(value, Tensor):
        raise SurgeryError(f"{where}: the new value is a {type(value).__name__}; wanted a tensor.")
    if value.ndim != like.ndim:
        raise SurgeryError(
            f"{where}: the new value has shape {tuple(value.shape)}, the present one {tuple(like.shape)}; an update "
            f"may change sizes but not the number of dimensions."
        )
    if _kind(value) > _kind(like):
        raise SurgeryError(
            f"{where}: a value of dtype {value.dtype} cannot be stored as {like.dtype} without loss; the adapter "
            f"must return {like.dtype} or narrower."
        )
    new = value.detach().resolve_conj().resolve_neg().to(like.dtype).to(like.device, copy=True)
    new = new.clone(memory_format=torch.contiguous_format)
    if slot.is_parameter and not bool(torch.isfinite(new).all()):
        cause = "overflows" if bool(torch.isfinite(value).all()) else "is not finite"
        raise SurgeryError(
            f"{where}: the new value {cause} in {like.dtype}. Keep this layer in a wider dtype, or exclude it."
        )
    return new


def require_maps(name: str, layer: nn.Module, update: LayerUpdate) -> None:
    """Raise SurgeryError unless every resized parameter is named by exactly one map, and maps name tensors only."""
    mapped = [inner for state_map in update.maps for inner in state_map.names]
    for inner in mapped:
        if mapped.count(inner) > 1:
            raise SurgeryError(f"Layer '{name}': two maps name '{inner}'; the adapter must give each parameter one.")
        if inner not in update.tensors:
            raise SurgeryError(f"Layer '{name}': a map names '{inner}', for which the update has no new value.")
    for inner, value in update.tensors.items():
        slot = find_tensor(name, layer, inner)
        if slot.is_parameter and inner not in mapped and slot.tensor.shape != value.shape:
            raise SurgeryError(
                f"{slot.label} changes from {tuple(slot.tensor.shape)} to {tuple(value.shape)}, but no map says how "
                f"its optimizer state follows; the adapter must name it in a Select, Pullback or Reset."
            )


def _add(tensors: dict[int, tuple[TensorSlot, Tensor]], slot: TensorSlot, value: Tensor) -> None:
    known = tensors.setdefault(id(slot.tensor), (slot, value))
    if known[1] is not value and not torch.equal(known[1], value):
        raise TiedParametersError(
            f"{known[0].label} and {slot.label} are one shared tensor, but their updates differ. Cut the layers "
            f"together, or exclude both."
        )


def _kind(tensor: Tensor) -> int:
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def _put_back(tensor: Tensor, old: Tensor, grad: Tensor | None) -> None:
    tensor.grad = None
    hold(tensor, old)
    tensor.grad = grad


def _refuse_stale_graphs(tensor: Tensor, steps: ExitStack) -> None:
    # A graph that is linear in the parameter has not saved it, so the version counter does not protect it: its old
    # gradient node would store a gradient of the old shape. The swap gives the parameter a new node.
    if not tensor.requires_grad:
        return
    with torch.enable_grad():
        node = tensor.view_as(tensor).grad_fn
    for parent, _ in node.next_functions if node is not None else ():
        if parent is not None:
            steps.callback(parent.register_prehook(_stale).remove)


def _stale(_: tuple[Tensor, ...]) -> NoReturn:
    raise SurgeryError(
        "A graph recorded before a cut was run backward after it. Cut only after optimizer.step(), and run the "
        "forward pass again before the next backward."
    )
