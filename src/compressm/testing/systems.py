"""Hard systems to test with: built from a recipe and a seed, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from numpy.random import Generator

from compressm.linalg.forms import realify, similarity
from compressm.linalg.statespace import Output, StateSpace


class PoleKind(Enum):
    """Where a pole lies."""

    RING = "ring"  # modulus 0.5 to 0.999, any angle
    SLOW = "slow"  # modulus 0.999 to 0.9999, any angle
    FAST = "fast"  # modulus below 0.5, any angle
    ZERO = "zero"  # exactly 0
    NEAR_ZERO = "near-zero"  # modulus 1e-12 to 1e-3
    POSITIVE = "positive"  # real, 0 to 0.9999
    NEGATIVE = "negative"  # real, -0.9999 to 0
    REPEATED = "repeated"  # equal to an earlier pole
    NEARLY_REPEATED = "nearly-repeated"  # 1e-10 to 1e-3 away from an earlier pole
    MIRRORED = "mirrored"  # the conjugate of an earlier pole


class Defect(Enum):
    """What is wrong with a system beyond its poles."""

    UNREACHABLE = "unreachable"  # some rows of B are zero
    UNOBSERVABLE = "unobservable"  # some columns of C are zero
    RESCALED = "rescaled"  # states multiplied by 1e-4 to 1e4
    ZERO_B = "zero-b"
    ZERO_C = "zero-c"


@dataclass(frozen=True)
class Recipe:
    """All that determines a system; `build_diagonal` and `build_dense` follow it."""

    kinds: tuple[PoleKind, ...]
    inputs: int = 1
    outputs: int = 1
    seed: int = 0
    defects: frozenset[Defect] = frozenset()
    feedthrough: bool = False
    output: Output = "real"
    with_log: bool = False  # give log(a), as a layer that stores the logarithm of its poles does


def build_diagonal(recipe: Recipe) -> StateSpace:
    """A stable complex diagonal discrete system in double precision."""
    rng = np.random.default_rng(recipe.seed)
    n, m, p = len(recipe.kinds), recipe.inputs, recipe.outputs
    a, log_a = _poles(recipe.kinds, rng)
    b, c = _complex_normal(rng, n, m), _complex_normal(rng, p, n) / max(n, 1) ** 0.5
    b = b * np.sqrt(-np.expm1(2 * np.maximum(log_a.real, -700.0)))[:, None]
    if Defect.UNREACHABLE in recipe.defects:
        b[rng.random(n) < 0.4] = 0
    if Defect.UNOBSERVABLE in recipe.defects:
        c[:, rng.random(n) < 0.4] = 0
    if Defect.ZERO_B in recipe.defects:
        b[:] = 0
    if Defect.ZERO_C in recipe.defects:
        c[:] = 0
    if Defect.RESCALED in recipe.defects:
        scale = 10.0 ** rng.uniform(-4, 4, n)
        b, c = b * scale[:, None], c / scale
    d = rng.standard_normal((p, m)) if recipe.feedthrough else None
    logs = torch.from_numpy(log_a) if recipe.with_log and bool(np.isfinite(log_a).all()) else None
    a = torch.from_numpy(a) if logs is None else torch.exp(logs)
    return StateSpace(
        a,
        torch.from_numpy(b),
        torch.from_numpy(c),
        None if d is None else torch.from_numpy(d),
        output=recipe.output,
        log_a=logs,
    )


def build_dense(recipe: Recipe) -> StateSpace:
    """A stable dense discrete system with the poles of `build_diagonal`.

    Real of order 2n for `output="real"` (the poles and their conjugates), complex of order n otherwise; in states that
    an orthogonal (unitary) transform mixes, and that are rescaled after it where the recipe says so.
    """
    rng = np.random.default_rng(recipe.seed + 1)
    defects = recipe.defects - {Defect.RESCALED}
    diagonal = build_diagonal(replace(recipe, defects=defects, with_log=False))
    real = recipe.output == "real"
    n = 2 * diagonal.order if real else diagonal.order
    mixed = rng.standard_normal((n, n)) if real else _complex_normal(rng, n, n)
    transform = torch.linalg.qr(torch.from_numpy(mixed)).Q
    system = similarity(realify(diagonal) if real else diagonal, transform)
    if Defect.RESCALED in recipe.defects:
        scale = torch.from_numpy(10.0 ** rng.uniform(-4, 4, n))
        system = rescale_states(system, scale)
    return system


def rescale_states(system: StateSpace, scale: torch.Tensor) -> StateSpace:
    """The same input-output map with state i multiplied by `scale[..., i]` (real, not zero)."""
    a = system.a if system.is_diagonal else scale.unsqueeze(-1) * system.a / scale.unsqueeze(-2)
    return replace(system, a=a, b=scale.unsqueeze(-1) * system.b, c=system.c / scale.unsqueeze(-2))


def stack_systems(systems: list[StateSpace]) -> StateSpace:
    """One batched system `(h, ...)` of several unbatched ones with equal shapes."""
    first = systems[0]
    logs = [s.log_a for s in systems if s.log_a is not None]
    feeds = [s.d for s in systems if s.d is not None]
    return replace(
        first,
        a=torch.stack([s.a for s in systems]),
        b=torch.stack([s.b for s in systems]),
        c=torch.stack([s.c for s in systems]),
        d=torch.stack(feeds) if len(feeds) == len(systems) else None,
        log_a=torch.stack(logs) if len(logs) == len(systems) else None,
    )


def unstack_systems(system: StateSpace) -> list[StateSpace]:
    """The unbatched systems of a system with one batch dimension."""

    def entry(t: torch.Tensor | None, i: int) -> torch.Tensor | None:
        return None if t is None else t[i]

    return [
        replace(system, a=system.a[i], b=system.b[i], c=system.c[i], d=entry(system.d, i), log_a=entry(system.log_a, i))
        for i in range(system.batch_shape[0])
    ]


def ring_system(
    order: int, inputs: int, outputs: int, *, seed: int = 0, smallest: float = 0.9, largest: float = 0.999
) -> StateSpace:
    """A random complex diagonal system as an LRU layer is initialised, with real output and log(a) known.

    Poles are uniform on the ring `smallest` <= |a| <= `largest`; the rows of B are scaled by sqrt(1 - |a|^2)
    (Orvieto et al. 2023, section 3.4).
    """
    rng = np.random.default_rng(seed)
    squared = smallest**2 + rng.random(order) * (largest**2 - smallest**2)
    log_a = torch.from_numpy(0.5 * np.log(squared) + 2j * np.pi * rng.random(order))
    b = torch.from_numpy(_complex_normal(rng, order, inputs) * np.sqrt(1 - squared)[:, None] / max(inputs, 1) ** 0.5)
    c = torch.from_numpy(_complex_normal(rng, outputs, order) * (2 / max(order, 1)) ** 0.5)
    return StateSpace(torch.exp(log_a), b, c, log_a=log_a)


def _complex_normal(rng: Generator, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / 2**0.5


def _poles(
    kinds: tuple[PoleKind, ...], rng: Generator
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.complex128]], np.ndarray[tuple[int, ...], np.dtype[np.complex128]]]:
    """The poles and their logarithms."""
    poles: list[complex] = []
    for kind in kinds:
        earlier = poles[rng.integers(len(poles))] if poles else 0.5 + 0.25j
        radius = {
            PoleKind.RING: rng.uniform(0.5, 0.999),
            PoleKind.SLOW: 1 - 10 ** rng.uniform(-4, -3),
            PoleKind.FAST: rng.uniform(0, 0.5),
            PoleKind.NEAR_ZERO: 10 ** rng.uniform(-12, -3),
            PoleKind.POSITIVE: rng.uniform(0, 0.9999),
            PoleKind.NEGATIVE: -rng.uniform(0, 0.9999),
        }.get(kind, 0.0)
        angle = rng.uniform(0, 2 * np.pi)
        if kind is PoleKind.REPEATED:
            pole = earlier
        elif kind is PoleKind.NEARLY_REPEATED:
            moved = earlier + 10 ** rng.uniform(-10, -3) * np.exp(1j * angle)
            pole = moved if abs(moved) < 0.9999 else earlier * (1 - 1e-6)
        elif kind is PoleKind.MIRRORED:
            pole = complex(np.conj(earlier))
        elif kind in (PoleKind.POSITIVE, PoleKind.NEGATIVE):
            pole = complex(radius)
        else:
            pole = radius * np.exp(1j * angle)
        poles.append(complex(pole))
    a = np.array(poles, dtype=np.complex128)
    with np.errstate(divide="ignore"):
        return a, np.where(a == 0, complex(-np.inf), np.log(np.where(a == 0, 1, a)))
