"""What is timed in JAX: the model of `_jax_lru`, its recurrence in one of three forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _contender import Arrays, Contender, weights
from _jax_lru import RECURRENCES, Recurrence, from_torch, gradients, make_step
from _shape import Shape
from jax import Array

DROPOUT, LEARNING_RATE = 0.1, 4e-4


def build(kind: str, task: str, shape: Shape, arrays: Arrays) -> Contender:
    """The contender `kind` ("jax NAME", a name of RECURRENCES) at the task "step" or "layer"."""
    del shape  # the arrays say it all
    recurrence = RECURRENCES[kind.removeprefix("jax ")]
    return (TrainingStep if task == "step" else Layer)(recurrence, arrays)


class TrainingStep(Contender):
    """The jitted step; steps are queued, and the host waits once, after the last."""

    def __init__(self, recurrence: Recurrence, arrays: Arrays) -> None:
        self._recurrence = recurrence
        self._step = make_step(recurrence, DROPOUT, LEARNING_RATE)
        self._state = from_torch(weights(arrays))
        self._x, self._labels = jnp.asarray(arrays["x"]), jnp.asarray(arrays["labels"])

    def run(self, count: int) -> None:
        for _ in range(count):
            self._state, _ = self._step(self._state, self._x, self._labels)
        jax.block_until_ready(self._state)

    def results(self, arrays: Arrays) -> Arrays:
        """Scores and gradients in training mode without dropout, at the weights as given."""
        state = from_torch(weights(arrays))
        scores, grads = gradients(state, self._x, self._labels, self._recurrence)
        return {"scores": np.asarray(scores), **_flat(grads)}


class Layer(Contender):
    """One layer's output and its gradients, for a given gradient of the output."""

    def __init__(self, recurrence: Recurrence, arrays: Arrays) -> None:
        self._p = from_torch(weights(arrays)).params["blocks"][0]["ssm"]
        self._u, self._grad = jnp.asarray(arrays["u"]), jnp.asarray(arrays["grad"])

        def one(p: dict[str, Array], u: Array) -> Array:
            return recurrence(p, u) + p["D"] * u

        @jax.jit
        def both(p: dict[str, Array], u: Array, grad: Array) -> tuple[Array, tuple[dict[str, Array], Array]]:
            y, backward = jax.vjp(lambda p, u: jax.vmap(one, in_axes=(None, 0))(p, u), p, u)
            return y, backward(grad)

        self._both = both

    def run(self, count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(self._both(self._p, self._u, self._grad))

    def results(self, arrays: Arrays) -> Arrays:
        """The output and all gradients."""
        y, (p, u) = self._both(self._p, self._u, self._grad)
        return {"y": np.asarray(y), "u": np.asarray(u), **_flat(p)}


def _flat(tree: Any) -> Arrays:
    """Leaves by names as of a state_dict."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
