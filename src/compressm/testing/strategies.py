"""Hypothesis strategies that generate hard systems; needs the package `hypothesis` (the extra `test`).

Every strategy draws a `compressm.testing.systems.Recipe`, so a failing case shrinks to few states and plain poles, and
is built again from what hypothesis prints.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from compressm.linalg.statespace import Output, StateSpace
from compressm.testing.systems import Defect, PoleKind, Recipe, build_dense, build_diagonal, stack_systems

_ANY_OUTPUT: tuple[Output, ...] = ("real", "complex")


@st.composite
def recipes(
    draw: st.DrawFn,
    *,
    min_order: int = 1,
    max_order: int = 24,
    max_channels: int = 4,
    outputs: tuple[Output, ...] = _ANY_OUTPUT,
    defects: bool = True,
    kinds: tuple[PoleKind, ...] = tuple(PoleKind),
) -> Recipe:
    """Recipes of systems: poles of all `kinds`, channels up to `max_channels`, and (with `defects`) what can be wrong.

    Small orders are drawn more often than large ones.
    """
    order = draw(st.integers(min_order, max_order) | st.integers(min_order, max(min_order, min(8, max_order))))
    return Recipe(
        kinds=tuple(draw(st.lists(st.sampled_from(kinds), min_size=order, max_size=order))),
        inputs=draw(st.integers(1, max_channels)),
        outputs=draw(st.integers(1, max_channels)),
        seed=draw(st.integers(0, 2**31)),
        defects=draw(st.sets(st.sampled_from(Defect), max_size=2).map(frozenset)) if defects else frozenset(),
        feedthrough=draw(st.booleans()),
        output=draw(st.sampled_from(outputs)),
        with_log=draw(st.booleans()),
    )


def diagonal_systems(
    *,
    min_order: int = 1,
    max_order: int = 24,
    max_channels: int = 4,
    outputs: tuple[Output, ...] = _ANY_OUTPUT,
    defects: bool = True,
) -> st.SearchStrategy[StateSpace]:
    """Stable complex diagonal discrete systems; some give the logarithm of their poles."""
    return recipes(
        min_order=min_order, max_order=max_order, max_channels=max_channels, outputs=outputs, defects=defects
    ).map(build_diagonal)


def dense_systems(
    *,
    max_order: int = 24,
    max_channels: int = 4,
    outputs: tuple[Output, ...] = _ANY_OUTPUT,
    defects: bool = True,
) -> st.SearchStrategy[StateSpace]:
    """Stable dense discrete systems: real (of an even order) for `output="real"`, else complex."""
    return recipes(max_order=max(1, max_order // 2), max_channels=max_channels, outputs=outputs, defects=defects).map(
        build_dense
    )


def systems(
    *,
    max_order: int = 24,
    max_channels: int = 4,
    outputs: tuple[Output, ...] = _ANY_OUTPUT,
    defects: bool = True,
) -> st.SearchStrategy[StateSpace]:
    """Stable discrete systems, diagonal or dense."""
    return diagonal_systems(
        max_order=max_order, max_channels=max_channels, outputs=outputs, defects=defects
    ) | dense_systems(max_order=max_order, max_channels=max_channels, outputs=outputs, defects=defects)


@st.composite
def batches(draw: st.DrawFn, *, max_batch: int = 4, max_order: int = 8, dense: bool = False) -> StateSpace:
    """Systems `(h, ...)` with one batch dimension; the systems of a batch have nothing but their shapes in common."""
    size = draw(st.integers(1, max_batch))
    recipe = draw(recipes(max_order=max_order))
    build = build_dense if dense else build_diagonal
    every = [replace(recipe, seed=recipe.seed + i, kinds=_rotated(recipe.kinds, i)) for i in range(size)]
    return stack_systems([build(r) for r in every])


@st.composite
def continuous_systems(draw: st.DrawFn, *, max_order: int = 12, dense: bool = False) -> StateSpace:
    """Stable continuous systems: decay rates from 1e-3 to 1e2, frequencies up to 1e2, some of them repeated."""
    recipe = draw(recipes(max_order=max_order, kinds=(PoleKind.RING, PoleKind.REPEATED, PoleKind.NEARLY_REPEATED)))
    diagonal = build_diagonal(replace(recipe, with_log=False))
    phase, fast = torch.angle(diagonal.a), draw(st.sampled_from((0.01, 1.0, 100.0)))
    poles = torch.complex(torch.log(diagonal.a.abs()), phase) * fast
    continuous = replace(diagonal, a=poles, sampling_time=0.0)
    return replace(continuous, a=torch.diag_embed(poles)) if dense else continuous


def _rotated(kinds: tuple[PoleKind, ...], by: int) -> tuple[PoleKind, ...]:
    by %= max(len(kinds), 1)
    return kinds[by:] + kinds[:by]
