"""A copy of what an optimizer holds, to be put back in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from compressm.errors import SurgeryError
from compressm.surgery.copies import copied


@dataclass(frozen=True, eq=False)
class _SavedGroup:
    group: dict[str, Any]
    parameters: list[Tensor]
    originals: dict[str, Any]
    values: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SavedOptimizer:
    """The state of every parameter and the settings of every group."""

    optimizer: Optimizer
    state: dict[Tensor, Any]
    groups: list[_SavedGroup]

    @classmethod
    def take(cls, optimizer: Optimizer) -> SavedOptimizer:
        """Copy state and settings; parameters are referred to."""
        state = {parameter: copied(entry) for parameter, entry in optimizer.state.items()}
        return cls(optimizer, state, [_save_group(group) for group in optimizer.param_groups])

    def restore(self) -> None:
        """Put state and settings back; state made since goes, state removed since returns."""
        optimizer = self.optimizer
        optimizer.state.clear()
        optimizer.state.update({parameter: copied(entry) for parameter, entry in self.state.items()})
        optimizer.param_groups[:] = [saved.group for saved in self.groups]
        for saved in self.groups:
            _restore_group(saved)
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer._numel_cache = None

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists of settings and tensors; parameters are numbered through the groups."""
        parameters = [p for saved in self.groups for p in saved.parameters]
        numbers = {p: number for number, p in enumerate(parameters)}
        return {
            "state": {numbers[p]: entry for p, entry in self.state.items() if p in numbers},
            "groups": [saved.values for saved in self.groups],
            "sizes": [len(saved.parameters) for saved in self.groups],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], optimizer: Optimizer) -> SavedOptimizer:
        """The copy that `state_dict` described, for an optimizer with the same groups of parameters.

        Raises SurgeryError where the groups differ.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if sizes != list(state["sizes"]):
            raise SurgeryError(
                f"The snapshot is of another optimizer: its groups have {list(state['sizes'])} parameters, these "
                f"{sizes}. Make the optimizer as in the saved run."
            )
        owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        entries = {owners[int(n)][0]: placed(entry, *owners[int(n)]) for n, entry in state["state"].items()}
        groups = [
            _SavedGroup(group, list(group["params"]), {k: group.get(k) for k in values}, values)
            for group, values in zip(optimizer.param_groups, state["groups"], strict=True)
        ]
        return cls(optimizer, entries, groups)


def placed(entry: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """State read from a file, on the devices where optimizers keep it: 0-d tensors on the CPU unless capturable."""
    on_device = bool(group.get("capturable")) or bool(group.get("fused"))
    if isinstance(entry, Tensor):
        return entry.to(parameter.device if entry.ndim > 0 or on_device else "cpu")
    if isinstance(entry, dict):
        return {key: placed(value, parameter, group) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return type(entry)(placed(value, parameter, group) for value in entry)
    return entry


def _save_group(group: dict[str, Any]) -> _SavedGroup:
    originals = {key: value for key, value in group.items() if key != "params"}
    return _SavedGroup(group, list(group["params"]), originals, copied(originals))


def _restore_group(saved: _SavedGroup) -> None:
    group = saved.group
    group["params"][:] = saved.parameters
    for key in [k for k in group if k != "params" and k not in saved.values]:
        del group[key]
    for key, value in saved.values.items():
        original = saved.originals[key]
        if isinstance(original, Tensor):  # a learning rate that schedulers and compiled steps change in place
            with torch.no_grad():
                original.copy_(value)
            group[key] = original
        else:
            group[key] = copied(value)
