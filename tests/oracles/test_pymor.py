"""Hankel singular values, H-infinity and H2 norms and reduced models against pyMOR, on realified systems."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from compressm.linalg.forms import realify, strictly_causal
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.hankel import hankel_singular_values, hankel_spectrum
from compressm.linalg.norms import difference, h2_norm, hinf_estimate, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.reducers import BalancedTruncation
from compressm.testing.systems import PoleKind, Recipe, build_diagonal

pytest.importorskip("pymor")
pytest.importorskip("slycot")

KINDS = (PoleKind.RING, PoleKind.SLOW, PoleKind.POSITIVE, PoleKind.FAST, PoleKind.NEGATIVE, PoleKind.RING)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """pyMOR logs to the terminal and warns about its own dependencies."""
    logging.getLogger("pymor").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lti_model(system: StateSpace):
    """pyMOR's discrete model; its convention is the textbook one, y_k = C' x_{k-1} + D' u_k."""
    from pymor.models.iosys import LTIModel

    textbook = strictly_causal(realify(system))
    a, b, c, d = (t.numpy() for t in (textbook.a, textbook.b, textbook.c, textbook.d))
    return LTIModel.from_matrices(a, b, c, d, sampling_time=1.0)


def test_the_oracle_on_one_state() -> None:
    one = StateSpace(*(torch.tensor([[t]], dtype=torch.float64) for t in (0.5, 3.0, 2.0)))
    model = lti_model(one)  # C' = C A
    assert model.hsv()[0] == pytest.approx(3.0 * 2.0 * 0.5 / (1 - 0.25))
    assert model.hinf_norm() == pytest.approx(hinf_norm(one)) == pytest.approx(6.0 / (1 - 0.5))


@pytest.mark.parametrize("seed", range(8))
def test_norms_and_values(seed: int) -> None:
    system = build_diagonal(Recipe(KINDS[: 2 + seed % 5], 1 + seed % 3, 1 + seed % 2, seed, feedthrough=seed % 2 == 0))
    model = lti_model(system)
    norm = hinf_norm(system)
    assert norm == pytest.approx(model.hinf_norm(), rel=1e-6)
    assert hinf_estimate(system) == pytest.approx(norm, rel=0.03)
    values = hankel_singular_values(strictly_causal(realify(system))).numpy()
    assert np.allclose(values, model.hsv(), rtol=1e-7, atol=1e-9 * values[0])
    assert h2_norm(system) == pytest.approx(model.h2_norm(), rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_balanced_truncation(seed: int) -> None:
    from pymor.reductors.bt import BTReductor

    system = build_diagonal(Recipe((PoleKind.RING,) * 6, 2, 2, seed))
    textbook = strictly_causal(realify(system))
    reduced = BTReductor(lti_model(system)).reduce(r=5, projection="sr")
    a, b, c, d, _ = reduced.to_matrices()
    theirs = StateSpace(*(torch.from_numpy(np.asarray(t)) for t in (a, b, c)))
    plain = StateSpace(textbook.a, textbook.b, textbook.c)
    factors = gramian_factors(plain)
    ours = BalancedTruncation().reduce(plain, factors, hankel_spectrum(factors), 5).system
    assert np.allclose(np.asarray(d), textbook.d.numpy())
    assert hinf_norm(difference(ours, theirs)) <= 1e-8 * hinf_norm(system)
