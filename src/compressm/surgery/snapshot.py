"""Copies of everything that training changes, to go back to after a cut that turned out badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from compressm.errors import SurgeryError
from compressm.surgery.copies import copied
from compressm.surgery.optimizer import Optimizers, as_sequence
from compressm.surgery.random_state import RandomState
from compressm.surgery.saved_model import SavedModel
from compressm.surgery.saved_optimizer import SavedOptimizer


@runtime_checkable
class Stateful(Protocol):
    """Anything that gives and takes its state: schedulers, gradient scalers, samplers."""

    def state_dict(self) -> dict[str, Any]:
        """The present state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take over a state that `state_dict` returned."""
        ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a training run at one moment, to be restored in place any number of times.

    It holds copies of parameters with their gradients, buffers, the modules' plain attributes (numbers, texts and
    tensors), optimizer state and settings, the `state_dict` of schedulers and other stateful objects, and the global
    random number generators. The model itself is never copied. The data stream is not part of it, nor is whether
    modules are in training mode.
    """

    model: SavedModel
    optimizers: list[SavedOptimizer]
    stateful: list[tuple[Stateful, dict[str, Any]]]
    random_state: RandomState

    @classmethod
    def take(
        cls,
        model: nn.Module,
        optimizers: Optimizers = (),
        schedulers: Stateful | Sequence[Stateful] = (),
        extra: Sequence[Stateful] = (),
    ) -> Snapshot:
        """Copy the present state. `extra` names further stateful objects, such as a gradient scaler."""
        random_state = RandomState.capture()
        return cls(
            SavedModel.take(model),
            [SavedOptimizer.take(optimizer) for optimizer in as_sequence(optimizers)],
            [(item, copied(item.state_dict())) for item in _stateful(schedulers, extra)],
            random_state,
        )

    def restore(self) -> None:
        """Put everything back, shapes included; training goes on bit for bit as if nothing had happened.

        Raises SurgeryError, with nothing changed, where a tensor has since changed its dtype or device.
        """
        self.model.restore()
        for item, state in self.stateful:
            item.load_state_dict(copied(state))
        for optimizer in self.optimizers:  # after the schedulers, some of which write learning rates
            optimizer.restore()
        self.random_state.restore()

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists of numbers, texts and tensors, for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stateful": [copied(state) for _, state in self.stateful],
            "random": self.random_state.state_dict(),
        }

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Any],
        model: nn.Module,
        optimizers: Optimizers = (),
        schedulers: Stateful | Sequence[Stateful] = (),
        extra: Sequence[Stateful] = (),
    ) -> Snapshot:
        """The snapshot that `state_dict` described, for a model (of whatever order) and objects made the same way.

        Raises SurgeryError where they do not fit.
        """
        chosen, items = as_sequence(optimizers), _stateful(schedulers, extra)
        for kind, found, wanted in (
            ("optimizers", len(chosen), len(state["optimizers"])),
            ("schedulers and other stateful objects", len(items), len(state["stateful"])),
        ):
            if found != wanted:
                raise SurgeryError(f"The snapshot has {wanted} {kind}, {found} are given; give those of the saved run.")
        return cls(
            SavedModel.from_state_dict(state["model"], model),
            [SavedOptimizer.from_state_dict(s, o) for s, o in zip(state["optimizers"], chosen, strict=True)],
            list(zip(items, state["stateful"], strict=True)),
            RandomState.from_state_dict(state["random"]),
        )


def _stateful(schedulers: Stateful | Sequence[Stateful], extra: Sequence[Stateful]) -> list[Stateful]:
    return [*(schedulers if isinstance(schedulers, Sequence) else [schedulers]), *extra]
