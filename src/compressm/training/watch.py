"""Knowing whether an optimizer is in the middle of a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from compressm.errors import ConfigError, SurgeryError


class StepWatch:
    """Watches whether one of the optimizers is inside `step()`, as it is while it runs a closure."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        if not optimizers:
            raise ConfigError("No optimizer was given; give the one that trains the model.")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise ConfigError(f"optimizer is {type(optimizer).__name__}; wanted torch.optim.Optimizer objects.")
        self._inside: set[Optimizer] = set()
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._enter),
                optimizer.register_step_post_hook(self._leave),
            )
        ]

    def _enter(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._inside.add(optimizer)

    def _leave(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._inside.discard(optimizer)

    def require_outside(self) -> None:
        """Raise SurgeryError where a step has begun and not returned."""
        if self._inside:
            names = sorted(type(o).__name__ for o in self._inside)
            raise SurgeryError(
                f"The step of {', '.join(names)} has begun and not returned (a closure, or an error inside it). "
                "Parameters must not change their size there: call this after optimizer.step() has returned."
            )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._inside = [], set()
