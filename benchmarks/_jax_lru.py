"""The competitor in JAX: the default `SequenceModel`, its recurrence as an associative scan, a loop or a convolution.

Per block: batch normalisation over batch and time without an affine map, y = Re(C x) + D u, GELU, dropout, gated
linear unit, dropout, skip; then mean over time, linear head, cross entropy, Adam. The batch is vmapped, one dropout key
a sequence, the step is one jitted function with donated state that never waits for the host. No complex matrix product
is taken where two real ones do, and the powers of the poles, equal in all sequences, are scanned once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Params = dict[str, Any]
Recurrence = Callable[[Params, Array], Array]

EPS, MOMENTUM = 1e-5, 0.1  # of the normalisation
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: Params
    statistics: list[Params]  # running mean and variance of each block's normalisation
    first: Params  # Adam's moments
    second: Params
    count: Array
    key: Array


def scan(p: Params, u: Array) -> Array:
    """Re(C x_k) for one sequence u (L, H), with x_k = pole x_{k-1} + gamma B u_k by lax.associative_scan.

    With time last, rows are long wherever the levels cut them, which is what XLA's loops on a CPU like.
    """
    gamma = jnp.exp(p["gamma_log"])[:, None]
    drive = lax.complex((gamma * p["B_re"]) @ u.T, (gamma * p["B_im"]) @ u.T)
    poles = jnp.broadcast_to(_poles(p)[:, None], drive.shape)

    def join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    x = lax.associative_scan(join, (poles, drive), axis=1)[1]
    return (p["C_re"] @ x.real - p["C_im"] @ x.imag).T


def loop(p: Params, u: Array) -> Array:
    """The same by lax.scan, one step after another."""
    gamma, poles = jnp.exp(p["gamma_log"]), _poles(p)
    drive = lax.complex(u @ p["B_re"].T * gamma, u @ p["B_im"].T * gamma)

    def advance(before: Array, driven: Array) -> tuple[Array, Array]:
        after = poles * before + driven
        return after, after

    x = lax.scan(advance, jnp.zeros_like(poles), drive, unroll=4)[1]
    return x.real @ p["C_re"].T - x.imag @ p["C_im"].T


def convolution(p: Params, u: Array) -> Array:
    """The same by FFT: y = K * u with the H x H kernel K[l] = Re(C diag(pole^l) gamma B)."""
    length, width = u.shape
    lags = jnp.arange(length, dtype=u.dtype)[:, None]
    radius, angle = jnp.exp(-lags * jnp.exp(p["nu_log"])), lags * jnp.exp(p["theta_log"])
    powers = jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1)  # (L, 2 N)
    gamma = jnp.exp(p["gamma_log"])[:, None]
    b_re, b_im, c_re, c_im = gamma * p["B_re"], gamma * p["B_im"], p["C_re"].T, p["C_im"].T
    real = c_re[:, :, None] * b_re[:, None] - c_im[:, :, None] * b_im[:, None]  # (N, H out, H in)
    imag = c_re[:, :, None] * b_im[:, None] + c_im[:, :, None] * b_re[:, None]
    weights = jnp.concatenate([real, -imag]).reshape(2 * len(real), -1)
    kernel = jnp.fft.rfft((powers @ weights).T.reshape(width, width, length), n=2 * length)
    spectrum = jnp.einsum("oif,if->of", kernel, jnp.fft.rfft(u.T, n=2 * length))
    return jnp.fft.irfft(spectrum, n=2 * length)[:, :length].T


RECURRENCES: dict[str, Recurrence] = {"scan": scan, "loop": loop, "convolution": convolution}


def _poles(p: Params) -> Array:
    radius, angle = jnp.exp(-jnp.exp(p["nu_log"])), jnp.exp(p["theta_log"])
    return lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))


def _linear(p: Params, x: Array) -> Array:
    return x @ p["weight"].T + p["bias"]


def _dropout(key: Array, x: Array, rate: float) -> Array:
    if rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def _mix(p: Params, z: Array, key: Array, recurrence: Recurrence, rate: float) -> Array:
    """What a block adds to one sequence, from its normalised input z (L, H)."""
    inner, outer = jax.random.split(key)
    y = jax.nn.gelu(recurrence(p["ssm"], z) + p["ssm"]["D"] * z, approximate=False)
    value, gate = jnp.split(_linear(p["gate"], _dropout(inner, y, rate)), 2, axis=-1)
    return _dropout(outer, value * jax.nn.sigmoid(gate), rate)


def _normalise(x: Array, running: Params) -> tuple[Array, Params]:
    mean, var = jnp.mean(x, (0, 1)), jnp.var(x, (0, 1))
    count = x.shape[0] * x.shape[1]
    fresh = {"running_mean": mean, "running_var": var * count / (count - 1)}
    followed = jax.tree.map(lambda old, new: old + MOMENTUM * (lax.stop_gradient(new) - old), running, fresh)
    return (x - mean) * lax.rsqrt(var + EPS), followed


def forward(
    params: Params, statistics: list[Params], x: Array, key: Array, recurrence: Recurrence, rate: float
) -> tuple[Array, list[Params]]:
    """Class scores (batch, outputs) in training mode for x (batch, L, inputs), and the running statistics."""
    x = _linear(params["encoder"], x)
    followed = []
    for p, running, block_key in zip(params["blocks"], statistics, jax.random.split(key, len(statistics)), strict=True):
        z, running = _normalise(x, running)
        mix = partial(_mix, recurrence=recurrence, rate=rate)
        x = x + jax.vmap(mix, in_axes=(None, 0, 0))(p, z, jax.random.split(block_key, x.shape[0]))
        followed.append(running)
    return _linear(params["head"], jnp.mean(x, 1)), followed


def _loss(params: Params, *rest: Any) -> tuple[Array, list[Params]]:
    *inputs, labels = rest
    scores, followed = forward(params, *inputs)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
    return -jnp.mean(chosen), followed


def make_step(recurrence: Recurrence, rate: float, lr: float) -> Callable[..., tuple[TrainState, Array]]:
    """The jitted training step: (state, x, labels) to (state, loss)."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, x: Array, labels: Array) -> tuple[TrainState, Array]:
        def loss(params: Params) -> tuple[Array, list[Params]]:
            key = jax.random.fold_in(state.key, state.count)
            return _loss(params, state.statistics, x, key, recurrence, rate, labels)

        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        count = state.count + 1
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state.second, grads)
        rise1, rise2 = 1 - BETA1**count, 1 - BETA2**count
        params = jax.tree.map(
            lambda p, m, v: p - lr * (m / rise1) / (jnp.sqrt(v / rise2) + ADAM_EPS), state.params, first, second
        )
        return TrainState(params, statistics, first, second, count, state.key), value

    return step


def gradients(state: TrainState, x: Array, labels: Array, recurrence: Recurrence) -> tuple[Array, Params]:
    """Scores and the gradient of the loss without dropout, in training mode: what is compared before timing."""
    rest = (state.statistics, x, state.key, recurrence, 0.0)
    scores = jax.jit(lambda params: forward(params, *rest)[0])(state.params)
    return scores, jax.jit(jax.grad(lambda params: _loss(params, *rest, labels)[0]))(state.params)


def from_torch(arrays: Mapping[str, np.ndarray[Any, Any]], seed: int = 0) -> TrainState:
    """The state of training before the first step, from a `SequenceModel`'s state_dict as arrays."""
    blocks = 1 + max((int(name.split(".")[1]) for name in arrays if name.startswith("blocks.")), default=-1)
    params: Params = {"encoder": {}, "head": {}, "blocks": [{"ssm": {}, "gate": {}} for _ in range(blocks)]}
    statistics: list[Params] = [{} for _ in range(blocks)]
    for name, value in arrays.items():
        *parents, leaf = name.split(".")
        node = params[parents[0]] if parents[0] != "blocks" else params["blocks"][int(parents[1])]
        if parents[-1] == "norm":
            node = statistics[int(parents[1])]
        elif parents[0] == "blocks":
            node = node[parents[2]]
        node[leaf] = jnp.asarray(value)
    first, second = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return TrainState(params, statistics, first, second, jnp.zeros((), jnp.int32), jax.random.key(seed))
