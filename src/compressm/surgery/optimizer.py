"""Carry optimizer state through a cut: compute every new state first, then commit them all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.update import LayerUpdate, Reset, Select, StateMap
from compressm.surgery.moments import foreign_keys, fresh, leading, moments, transport
from compressm.surgery.parameters import Undo
from compressm.surgery.policy import StatePolicy
from compressm.surgery.slots import find_tensor

Optimizers = Optimizer | Sequence[Optimizer]


def carry_state(
    optimizer: Optimizers, items: Sequence[tuple[nn.Module, LayerUpdate]], policy: StatePolicy
) -> list[str]:
    """Carry the state of replaced parameters over, before or after the parameters themselves are swapped.

    Under TRANSPORT first moments m follow as gradients do, m' = map.covectors(m), and second moments through
    map.variances; scalars stay, and a parameter without a map starts anew with step 0. State of an unknown kind
    (factored, quantised, nested) is dropped, so that the optimizer begins again for that parameter. Parameter groups
    and schedulers are not touched, nor is the state of any other parameter.

    Returns warnings that name what could not be carried. Raises SurgeryError, with nothing changed, where new state
    would not fit its parameter.
    """
    prepared = prepare_state(optimizer, [(type(layer).__name__, layer, update) for layer, update in items], policy)
    prepared.commit()
    return prepared.warnings


@dataclass(frozen=True, eq=False)
class PreparedState:
    """New optimizer states that are computed and checked but not yet in place."""

    entries: dict[Tensor, tuple[Optimizer, dict[str, object] | None]] = field(default_factory=dict)
    restarted: list[torch.optim.LBFGS] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    foreign: dict[str, list[str]] = field(default_factory=dict)

    def commit(self) -> Undo:
        """Put the new states in place, all or none."""
        with ExitStack() as steps:
            for parameter, (optimizer, entry) in self.entries.items():
                state = _states(optimizer)
                steps.callback(state.__setitem__, parameter, state[parameter])
                if entry is None:
                    del state[parameter]
                else:
                    state[parameter] = entry
            for optimizer in self.restarted:
                steps.callback(_states(optimizer).update, dict(_states(optimizer)))
                steps.callback(setattr, optimizer, "_numel_cache", optimizer._numel_cache)
                _states(optimizer).clear()
                optimizer._numel_cache = None
            return Undo(steps.pop_all())


def prepare_state(
    optimizer: Optimizers, items: Sequence[tuple[str, nn.Module, LayerUpdate]], policy: StatePolicy
) -> PreparedState:
    """Compute what `carry_state` would put in place for the updates `(name, layer, update)`; changes nothing."""
    optimizers = as_sequence(optimizer)
    prepared = PreparedState()
    home = {p: (owner, group) for owner in optimizers for group in owner.param_groups for p in group["params"]}
    for name, layer, update in items:
        for state_map in _jobs(layer, update, policy):
            members = _members(name, layer, update, state_map, home, prepared)
            _prepare(members, state_map, policy, prepared)
    for kind, labels in prepared.foreign.items():
        names = list(dict.fromkeys(labels))
        more = f" and {len(names) - 3} more parameters" if len(names) > 3 else ""
        whose = "; ".join(names[:3]) + more
        prepared.warnings.append(f"{kind} is of an unknown kind; that of {whose} starts anew.")
    prepared.restarted.extend(_lbfgs(optimizers, items, prepared.warnings))
    return prepared


def as_sequence(optimizer: Optimizers) -> Sequence[Optimizer]:
    """One optimizer or several, as a sequence."""
    return optimizer if isinstance(optimizer, Sequence) else (optimizer,)


@dataclass(frozen=True, eq=False)
class _Member:
    label: str
    parameter: Tensor
    shape: torch.Size
    optimizer: Optimizer
    group: Mapping[str, object]
    entry: Mapping[str, object]


def _jobs(layer: nn.Module, update: LayerUpdate, policy: StatePolicy) -> Iterator[StateMap]:
    if policy is StatePolicy.TRANSPORT:
        for state_map in update.maps:  # a choice of entries concerns each parameter alone
            alone = isinstance(state_map, Select)
            yield from (replace(state_map, names=(n,)) for n in state_map.names) if alone else (state_map,)
    else:
        yield from (Reset((name,)) for name in update.tensors if find_tensor("", layer, name).is_parameter)


def _members(
    name: str,
    layer: nn.Module,
    update: LayerUpdate,
    state_map: StateMap,
    home: Mapping[Tensor, tuple[Optimizer, Mapping[str, object]]],
    prepared: PreparedState,
) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for inner in state_map.names:
        slot = find_tensor(name, layer, inner)
        if slot.tensor not in home:
            if slot.is_parameter and slot.tensor.requires_grad:
                prepared.warnings.append(f"{slot.label} belongs to no given optimizer; state beside it is not carried.")
            continue
        owner, group = home[slot.tensor]
        entry = _states(owner).get(slot.tensor)
        if entry and not isinstance(owner, torch.optim.LBFGS):
            members[inner] = _Member(slot.label, slot.tensor, update.tensors[inner].shape, owner, group, entry)
    return members


def _prepare(members: dict[str, _Member], state_map: StateMap, policy: StatePolicy, prepared: PreparedState) -> None:
    for inner, member in list(members.items()):
        foreign = foreign_keys(member.entry)
        if foreign and policy is not StatePolicy.SLICE:
            del members[inner]
            prepared.entries[member.parameter] = (member.optimizer, None)
            if policy is StatePolicy.TRANSPORT:
                kind = f"{type(member.optimizer).__name__} state {', '.join(map(repr, foreign))}"
                prepared.foreign.setdefault(kind, []).append(member.label)
    new = _transported(members, state_map, prepared) if policy is StatePolicy.TRANSPORT else None
    for inner, member in members.items():
        if new is not None:
            entry: dict[str, object] | None = new[inner]
        elif policy is StatePolicy.SLICE:
            entry = leading(member.entry, member.shape)
            if entry is None:
                prepared.warnings.append(
                    f"{member.label}: its {type(member.optimizer).__name__} state has no leading entries of shape "
                    f"{tuple(member.shape)}; the state of this parameter starts anew."
                )
        else:
            entry = fresh(member.entry, member.group, member.shape)
        prepared.entries.setdefault(member.parameter, (member.optimizer, entry))  # a tied one may come twice


def _transported(
    members: dict[str, _Member], state_map: StateMap, prepared: PreparedState
) -> dict[str, dict[str, object]] | None:
    if not members or isinstance(state_map, Reset):
        return None
    absent = [inner for inner in state_map.names if inner not in members]
    kinds = {tuple(moments(member.entry).items()) for member in members.values()}
    if absent or len(kinds) > 1:
        cause = f"{', '.join(map(repr, absent))} has none" if absent else "they hold different moments"
        labels = "; ".join(member.label for member in members.values())
        prepared.warnings.append(f"{labels}: state can only be carried jointly, but {cause}; it starts anew.")
        return None
    return transport(
        state_map,
        {inner: member.entry for inner, member in members.items()},
        {inner: member.group for inner, member in members.items()},
        {inner: member.shape for inner, member in members.items()},
    )


def _lbfgs(
    optimizers: Sequence[Optimizer], items: Sequence[tuple[str, nn.Module, LayerUpdate]], warnings: list[str]
) -> Iterator[torch.optim.LBFGS]:
    changed = {find_tensor(name, layer, inner).tensor for name, layer, update in items for inner in update.tensors}
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS) and not changed.isdisjoint(optimizer.param_groups[0]["params"]):
            warnings.append("LBFGS keeps one history of all parameters; it starts anew.")
            yield optimizer


def _states(optimizer: Optimizer) -> dict[Tensor, dict[str, object]]:
    return cast(dict[Tensor, dict[str, Any]], optimizer.state)
