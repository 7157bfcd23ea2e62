"""Seeded, stratified splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressm.errors import DataError


def holdout(
    y: NDArray[np.generic], fraction: float, seed: int, *, stratify: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the cases in two: (the rest, the held-out part), each in ascending order.

    `y` holds one target for each case. With `stratify` every class gives `fraction` of its cases, rounded so that the
    sum is right (largest remainders), and at least one where it has two or more. The split depends on `y`, `fraction`
    and `seed` alone.

    Raises:
        DataError: the fraction is not between 0 and 1, or one of the two parts would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"A held-out fraction of {fraction} was asked for; wanted more than 0 and less than 1.")
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == value) for value in np.unique(y)] if stratify else [np.arange(len(y))]
    counts = _shares(np.array([len(group) for group in groups]), fraction)
    held = [generator.permutation(group)[:count] for group, count in zip(groups, counts, strict=True)]
    out = np.sort(np.concatenate(held)).astype(np.int64)
    rest = np.setdiff1d(np.arange(len(y)), out).astype(np.int64)
    if not len(out) or not len(rest):
        raise DataError(
            f"{len(y)} cases cannot be split with a held-out fraction of {fraction}: a part would be empty. "
            "Give more cases."
        )
    return rest, out


def _shares(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many cases each group gives."""
    exact = fraction * sizes
    counts = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return np.where(sizes >= 2, np.clip(counts, 1, sizes - 1), counts)
