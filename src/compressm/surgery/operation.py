"""A whole cut on live objects: parameters, attributes and optimizer state change together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from compressm.surgery.optimizer import Optimizers, prepare_state
from compressm.surgery.parameters import LayerItem, Undo, apply_updates
from compressm.surgery.policy import StatePolicy


@dataclass(frozen=True, eq=False)
class Operation:
    """A cut that was made: how to undo it, and what could not be carried over."""

    undo: Undo
    warnings: tuple[str, ...]


def operate(
    items: Sequence[LayerItem],
    optimizer: Optimizers | None,
    policy: StatePolicy,
    followers: Sequence[LayerItem] = (),
) -> Operation:
    """Apply the updates `(name, layer, update)` and carry the optimizers' state over, all or nothing.

    `followers` are updates of layers that no optimizer trains, such as averages of the others.

    Raises SurgeryError (see `apply_updates` and `carry_state`) with everything as it was.
    """
    prepared = prepare_state(() if optimizer is None else optimizer, items, policy)
    with ExitStack() as steps:
        steps.callback(apply_updates([*items, *followers]).undo)
        steps.callback(prepared.commit().undo)
        warnings = () if optimizer is None else tuple(prepared.warnings)
        return Operation(Undo(steps.pop_all()), warnings)
