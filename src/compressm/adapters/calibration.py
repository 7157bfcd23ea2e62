"""Hooks that capture what a layer sees: its inputs, and the loss's gradients at its output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressm.adapters.registry import Adapters, LayerRef, find_layers

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Capture:
    """What was captured at one layer: inputs with masks, and gradients of the loss at the output, `(batch, L, *)`."""

    inputs: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def tokens(self) -> int:
        """The number of captured input positions, padding included."""
        return sum(u.shape[0] * u.shape[1] for u, _ in self.inputs)

    def gradient_tokens(self) -> int:
        """The number of captured gradient positions."""
        return sum(g.shape[0] * g.shape[1] for g in self.gradients)


class Calibration:
    """Captures the inputs and output gradients of every state space layer of a model while it is started.

    As a context manager it is started inside::

        with Calibration(model) as calibration:
            loss_function(model(x), y).backward()
        compress_(model, calibration=calibration)

    With `capture_gradients`, passes without a graph (a validation under `no_grad`) are left out. A module that is used
    several times in a pass is one system: its captures are pooled. Forward passes that activation checkpointing
    repeats inside backward are not counted twice. At most `max_tokens` positions of a layer are kept, whole
    sequences, the first ones captured. `grad_scale` gives the factor the loss was multiplied by (a GradScaler's
    `get_scale`), which is divided out; gradients that are not finite are dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        adapters: Adapters | None = None,
        capture_gradients: bool = True,
        max_tokens: int = 100_000,
        grad_scale: Callable[[], float] | None = None,
    ) -> None:
        self._layers = find_layers(model, adapters)
        self._capture_gradients, self._max_tokens, self._grad_scale = capture_gradients, max_tokens, grad_scale
        self._captures: dict[str, Capture] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def started(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def start(self) -> None:
        """Put the hooks in place; nothing happens if they are."""
        if not self.started:
            self._handles = [
                ref.module.register_forward_hook(self._hook(ref), with_kwargs=True) for ref in self._layers
            ]

    def stop(self) -> None:
        """Remove the hooks and keep the captures."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def clear(self) -> None:
        """Drop the captures."""
        self._captures = {}

    def capture(self, name: str) -> Capture | None:
        """What was captured at the layer of that name, None where it saw no pass."""
        return self._captures.get(name)

    def state_dict(self) -> dict[str, Any]:
        """The captures, as nested dictionaries and lists of tensors."""
        return {
            name: {"inputs": [[u, mask] for u, mask in c.inputs], "gradients": list(c.gradients)}
            for name, c in self._captures.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over captures that `state_dict` returned."""
        devices = {ref.name: next(ref.module.parameters()).device for ref in self._layers}

        def move(t: Tensor | None, name: str) -> Tensor | None:
            return None if t is None else t.to(devices.get(name, t.device))

        self._captures = {
            name: Capture(
                [(u.to(devices.get(name, u.device)), move(mask, name)) for u, mask in c["inputs"]],
                [g.to(devices.get(name, g.device)) for g in c["gradients"]],
            )
            for name, c in state.items()
        }

    def __enter__(self) -> Calibration:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _hook(self, ref: LayerRef) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
            u, mask = ref.adapter.inputs(module, args, kwargs)
            y = ref.adapter.output(module, result)
            if u.ndim != 3 or y.ndim != 3:
                _logger.warning("%s: a pass with an input of shape %s was not captured", ref.name, tuple(u.shape))
                return
            captured = self._captures.setdefault(ref.name, Capture())
            self._keep_input(captured, u, mask)
            if self._capture_gradients and y.requires_grad:
                y.register_hook(lambda g: self._keep_gradient(ref.name, g))

        return hook

    def _keep_input(self, captured: Capture, u: Tensor, mask: Tensor | None) -> None:
        repeated = torch._C._current_graph_task_id() != -1  # inside backward: checkpointing runs the pass again
        if repeated or (self._capture_gradients and not torch.is_grad_enabled()):
            return
        room = (self._max_tokens - captured.tokens()) // max(u.shape[1], 1)
        if room > 0 or not captured.inputs:
            kept = max(room, 1)
            captured.inputs.append((u[:kept].detach().clone(), None if mask is None else mask[:kept].detach().clone()))

    def _keep_gradient(self, name: str, gradient: Tensor) -> None:
        captured = self._captures.get(name)
        if captured is None or not self.started:
            return
        room = (self._max_tokens - captured.gradient_tokens()) // max(gradient.shape[1], 1)
        if room <= 0 and captured.gradients:
            return
        kept = gradient[: max(room, 1)].detach().float()
        if self._grad_scale is not None:
            kept = kept / self._grad_scale()
        if bool(torch.isfinite(kept).all()):
            captured.gradients.append(kept.clone())
