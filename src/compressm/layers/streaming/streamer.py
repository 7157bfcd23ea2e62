"""A model that is run one time step after the other, as fast as its matrix-vector products."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from compressm.errors import ConfigError, StaleModelError
from compressm.layers.config import Task
from compressm.layers.model import SequenceModel, StreamState
from compressm.layers.streaming.program import Program, prepare

_version = attrgetter("_version")


class Streamer:
    """Runs a model one time step after the other and owns the state: what `model.step` gives, several times faster.

    Everything that does not depend on the input is computed once: poles, input gains, the evaluation form of batch
    normalisation (folded into the layers' matrices, as are all constant factors), and the matrices in the order in
    which they are read. A step then is three matrix products a block and a few pointwise operations, in memory that is
    allocated once; with compiled kernels, a single float32 sequence on the CPU takes all of them in one call. It costs
    a second copy of the weights. Layers without a `system` run by their own `step`.

    The model must stay as it was: a `step` after an optimizer's step, a cut or any other change in place raises
    `StaleModelError`, and `refresh` prepares anew. Parameters that were replaced by others, or moved with
    `model.to(...)`, are noticed by `reset` and `load`. Hooks of the modules do not run. One streamer belongs to one
    thread.

    Raises ConfigError for a bidirectional model, a model in training mode, a batch below 1, and a model that is not
    all float32 or all float64.
    """

    def __init__(self, model: SequenceModel, batch: int = 1) -> None:
        """Prepare `model` for `batch` sequences side by side."""
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"Streamer: batch is {batch!r}; wanted an integer of at least 1.")
        self._model = model
        self._batch = batch
        self.refresh()

    def refresh(self) -> None:
        """Prepare the model as it is now, and start from the zero state."""
        _check(self._model)
        self._program: Program = prepare(self._model, self._batch)
        self._classifies = self._model.config.task is Task.CLASSIFY
        self._steps = 0
        tensors = _tensors(self._model)
        self._identity = _identity(tensors)
        self._watched = {name: t for name, t in tensors.items() if not t.is_inference()}
        self._values = tuple(self._watched.values())
        self._versions = tuple(map(_version, self._values))

    def step(self, x: Tensor) -> Tensor:
        """The scores (batch, outputs) for one time step x: (batch, inputs), or token ids (batch,).

        A classifier gives its scores for the sequence so far.

        Raises StaleModelError where the model changed, and ConfigError where x has another shape.
        """
        if tuple(map(_version, self._values)) != self._versions:
            self._complain()
        program = self._program
        if x.shape != program.inputs.shape:
            raise ConfigError(f"The input has shape {tuple(x.shape)}; wanted {tuple(program.inputs.shape)}.")
        with torch.inference_mode(), np.errstate(all="ignore"):  # not finite: as in PyTorch, no warning
            program.inputs.copy_(x)
            for call in program.calls:
                call()
            self._steps += 1
            if self._classifies:
                torch.div(program.total, self._steps, out=program.features)
            for call in program.head:
                call()
        return program.scores.clone()

    def reset(self) -> None:
        """Start from the zero state; raises StaleModelError where the model changed."""
        self._check_identity()
        with torch.inference_mode():
            for tensor in (*self._program.states, self._program.total):
                tensor.zero_()
        self._steps = 0

    def state(self) -> StreamState:
        """A copy of the state, which `load` and `model.step` take; a sequence task has no sum of features."""
        program = self._program
        return StreamState(tuple(s.clone() for s in program.states), program.total.clone(), self._steps)

    def load(self, state: StreamState) -> None:
        """Go on from a state that `state` or `model.step` gave.

        Raises StaleModelError where the model changed, and ConfigError where the state does not fit; it is not
        loaded then.
        """
        self._check_identity()
        given, held = (*state.blocks, state.total), (*self._program.states, self._program.total)
        found, wanted = [tuple(t.shape) for t in given], [tuple(t.shape) for t in held]
        if found != wanted:
            raise ConfigError(f"The state has tensors of shapes {found}; wanted {wanted}.")
        with torch.inference_mode():
            for mine, theirs in zip(held, given, strict=True):
                mine.copy_(theirs)
        self._steps = state.steps

    def _complain(self) -> None:
        changed = [n for n, t, v in zip(self._watched, self._values, self._versions, strict=True) if t._version != v]
        raise StaleModelError(_stale(changed))

    def _check_identity(self) -> None:
        now = _identity(_tensors(self._model))
        changed = [name for name in {**self._identity, **now} if self._identity.get(name) != now.get(name)]
        if changed:
            raise StaleModelError(_stale(changed))


def _tensors(model: SequenceModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _identity(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {
        name: (id(t), t.data_ptr(), tuple(t.shape), t.dtype, t.device, None if t.is_inference() else t._version)
        for name, t in tensors.items()
    }


def _stale(changed: list[str]) -> str:
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return (
        f"The model changed since this streamer was prepared ('{changed[0]}'{more}). Call refresh(), which starts from "
        f"the zero state, or make a new Streamer."
    )


def _check(model: SequenceModel) -> None:
    if model.training:
        raise ConfigError("A Streamer runs a trained model; call model.eval() first.")
    kinds = {t.dtype for t in _tensors(model).values() if t.is_floating_point() or t.is_complex()}
    if kinds not in ({torch.float32}, {torch.float64}):
        raise ConfigError(
            f"The model holds {', '.join(sorted(map(str, kinds)))}; a Streamer wants all float32 or all float64: call "
            f"model.float() or model.double()."
        )
