"""Hooks that capture what a layer sees: its inputs, and the loss's gradients at its output."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressm.adapters.holding import identity_of, reference_tensor, single
from compressm.adapters.registry import Adapters, LayerRef, find_layers
from compressm.adapters.sequences import Pass
from compressm.adapters.tapping import Tapped
from compressm.adapters.uncompiled import UNCOMPILED
from compressm.checks import brief, require_integer, require_kind
from compressm.errors import ConfigError

MAX_TOKENS = 100_000
"""Positions of a layer that are kept where nothing else is said."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pooled:
    """What all processes captured at one layer: second moments of its states and costates, None without captures.

    `inputs`, newest first, are those that a fit looks at; None where nothing is to be fitted.
    """

    controllability: Tensor | None
    observability: Tensor | None
    inputs: list[Pass] | None = None


@dataclass(eq=False)
class Capture:
    """What was captured at one layer, `(batch, L, *)`, with masks: inputs, and gradients of the loss at the output.

    `pooled`, where set, is to be used in place of this process's own captures.
    """

    inputs: list[Pass] = field(default_factory=list)
    gradients: list[Pass] = field(default_factory=list)
    pooled: Pooled | None = None

    def newest(self) -> list[Pass]:
        """The captured inputs, newest first: of all processes where they were gathered."""
        if self.pooled is not None and self.pooled.inputs is not None:
            return self.pooled.inputs
        return self.inputs[::-1]

    def tokens(self) -> int:
        """The number of captured input positions, padding included."""
        return _positions(self.inputs)

    def gradient_tokens(self) -> int:
        """The number of captured gradient positions."""
        return _positions(self.gradients)


class Calibration:
    """Captures the inputs and output gradients of every state space layer of a model while it is started.

    As a context manager it is started inside::

        with Calibration(model) as calibration:
            loss_function(model(x), y).backward()
        compress_(model, calibration=calibration)

    With `capture_gradients`, a pass counts when the loss's gradient arrives at it: passes that nothing runs backward
    (a validation) are left out, and one that activation checkpointing repeats counts once. A module that is used
    several times in a pass is one system: its captures are pooled. At most `max_tokens` positions of a layer are kept,
    whole sequences, the first ones captured. `grad_scale` gives the factor the loss was multiplied by (a GradScaler's
    `get_scale`), which is divided out; inputs and gradients that are not finite are dropped. `training_only` leaves
    out passes of modules in evaluation mode. While it is started, what `torch.compile` compiled runs uncompiled: hooks
    put in place later are no part of its graphs. One that nothing refers to any more is stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        adapters: Adapters | None = None,
        capture_gradients: bool = True,
        max_tokens: int = MAX_TOKENS,
        grad_scale: Callable[[], float] | None = None,
        training_only: bool = False,
    ) -> None:
        require_integer("max_tokens", max_tokens, 1)
        require_kind("capture_gradients", capture_gradients, bool)
        require_kind("training_only", training_only, bool)
        if grad_scale is not None and not callable(grad_scale):
            raise ConfigError(f"grad_scale is {brief(grad_scale)}; wanted a function like get_scale.")
        self._layers = find_layers(model, adapters)
        self._training_only = training_only
        self._names = _first_names(self._layers)
        self._capture_gradients, self._max_tokens, self._grad_scale = capture_gradients, max_tokens, grad_scale
        self._captures: dict[str, Capture] = {}
        self._handles: list[RemovableHandle | Tapped] = []
        weakref.finalize(self, _release, self._handles, id(self)).atexit = False

    @property
    def started(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def start(self) -> None:
        """Put the hooks in place; nothing happens if they are."""
        UNCOMPILED.hold(id(self))
        if self.started:
            return
        try:
            for ref in self._layers:
                if not ref.adapter.takes_input(ref.module):
                    continue
                tap = ref.adapter.tap(ref.module)
                tapped = None if tap is None else Tapped(tap, ref.module)
                self._handles += [] if tapped is None else [tapped]
                self._handles.append(ref.module.register_forward_hook(self._hook(ref, tapped), with_kwargs=True))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the hooks and keep the captures."""
        _release(self._handles, id(self))

    def clear(self) -> None:
        """Drop the captures."""
        self._captures = {}

    def capture(self, name: str) -> Capture | None:
        """What was captured at the layer of that name, None where it saw no pass."""
        return self._captures.get(self._names.get(name, name))

    def pool(self, name: str, pooled: Pooled) -> None:
        """Use this for the layer of that name until the captures are cleared."""
        self._of(self._names.get(name, name)).pooled = pooled

    def state_dict(self) -> dict[str, Any]:
        """The captures, as nested dictionaries and lists of tensors."""
        return {
            name: {"inputs": [[*pair] for pair in c.inputs], "gradients": [[*pair] for pair in c.gradients]}
            for name, c in self._captures.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over captures that `state_dict` returned."""
        devices = {ref.name: reference_tensor(ref.module).device for ref in self._layers}

        def placed(pairs: Iterable[Sequence[Tensor | None]], name: str) -> list[tuple[Tensor, Tensor | None]]:
            require_kind(f"The captures at '{name}'", pairs, list, tuple, wanted="a list")
            moved = ([t if t is None else t.to(devices.get(name, t.device)) for t in pair] for pair in pairs)
            kept = [(values, mask) for values, mask in moved if values is not None]
            if any(values.ndim != 3 for values, _ in kept):
                raise ConfigError(f"The captures at '{name}' are damaged; wanted tensors (batch, L, *).")
            return kept

        self._captures = {
            name: Capture(placed(c["inputs"], name), placed(c["gradients"], name)) for name, c in state.items()
        }

    def __enter__(self) -> Calibration:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _hook(self, ref: LayerRef, tapped: Tapped | None) -> Callable[..., None]:
        name, weak = self._names[ref.name], weakref.ref(self)

        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
            self = weak()
            if self is None or module is not ref.module or torch.compiler.is_compiling():
                return  # nothing wants it; a deep copy of the model, which took the hook along; a graph is being made
            y = ref.adapter.output(module, result) if tapped is None else tapped.take()
            if self._training_only and not module.training:
                return
            u, mask = ref.adapter.inputs(module, args, kwargs)
            u = u.detach()  # without a graph: checkpointing counts what is saved
            if u.ndim != 3 or ref.adapter.arranged(module, y.detach()).ndim != 3:
                _logger.warning("%s: a pass with an input of shape %s was not captured", ref.name, tuple(u.shape))
                return
            repeated = torch._C._current_graph_task_id() != -1  # inside backward: checkpointing runs the pass again
            if self._capture_gradients and y.requires_grad:
                y.register_hook(self._gradient_hook(name, ref, u, mask))
            elif not repeated and (torch.is_grad_enabled() or not self._capture_gradients):
                self._keep(self._of(name).inputs, u, mask)

        return hook

    def _gradient_hook(self, name: str, ref: LayerRef, u: Tensor, mask: Tensor | None) -> Callable[[Tensor], None]:
        waiting: list[tuple[Tensor, Tensor | None]] = []
        room = self._room(self._captures.get(name, Capture()).inputs, u)
        if room > 0:
            waiting.append((_copy(u[:room]), mask))
        scale, weak = self._grad_scale, weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            self = weak()
            if self is None or not self.started:
                return
            gradient = ref.adapter.arranged(ref.module, gradient.detach())
            captured = self._of(name)
            while waiting:  # the pass counts once, however often it is run backward
                self._keep(captured.inputs, *waiting.pop())
            if self._room(captured.gradients, gradient) > 0:
                gradient = single(gradient)
                self._keep(captured.gradients, gradient if scale is None else gradient / scale(), mask)

        return hook

    def _of(self, name: str) -> Capture:
        return self._captures.setdefault(name, Capture())

    def _room(self, kept: list[tuple[Tensor, Tensor | None]], values: Tensor) -> int:
        """How many more sequences like `values` may be kept; always one of the first pass."""
        return max((self._max_tokens - _positions(kept)) // max(values.shape[1], 1), 0 if kept else 1)

    def _keep(self, kept: list[tuple[Tensor, Tensor | None]], values: Tensor, mask: Tensor | None) -> None:
        room = self._room(kept, values)
        if room > 0 and bool(torch.isfinite(values[:room]).all()):
            kept.append((_copy(values[:room]), None if mask is None else mask[:room].detach().clone()))


def _release(handles: list[RemovableHandle | Tapped], holder: int) -> None:
    """Take the hooks away, and let compiled code run again."""
    UNCOMPILED.let_go(holder)
    while handles:
        handles.pop().remove()


def _copy(x: Tensor) -> Tensor:
    """x in row order, as a checkpoint gives it back: sums over it are then equal to the last bit."""
    return x.clone(memory_format=torch.contiguous_format)


def _first_names(layers: Sequence[LayerRef]) -> dict[str, str]:
    """Each layer's name to that of the first layer with the very same parameters: they are one system."""
    owners: dict[frozenset[int], str] = {}
    return {ref.name: owners.setdefault(identity_of(ref.module), ref.name) for ref in layers}


def _positions(kept: Iterable[tuple[Tensor, Tensor | None]]) -> int:
    return sum(values.shape[0] * values.shape[1] for values, _ in kept)
