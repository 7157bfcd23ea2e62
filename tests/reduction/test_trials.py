from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressm.reduction.trials import Trial, Trials


def trials_of(losses: list[float], seen: list[int], missing: frozenset[int] = frozenset()) -> Trials:
    def attempt(size: int) -> Trial | None:
        seen.append(size)
        loss = losses[size - 1]
        return (
            None
            if size in missing
            else Trial(lambda: torch.tensor(loss, dtype=torch.float64), lambda tolerance: loss <= tolerance)
        )

    return Trials(range(1, len(losses) + 1), attempt)


@given(st.lists(st.floats(0, 1), max_size=80), st.floats(0, 1))
def test_the_smallest_is_found_in_few_trials_where_losses_fall(losses: list[float], allowed: float) -> None:
    losses, seen = sorted(losses, reverse=True), []
    found = trials_of(losses, seen).smallest(lambda trial: trial.within(allowed))
    good = [i + 1 for i, loss in enumerate(losses) if loss <= allowed]
    assert found == (good[0] if good else None)
    assert len(seen) <= len(losses).bit_length()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 1), st.frozensets(st.integers(1, 40)))
def test_what_is_found_is_always_admitted(losses: list[float], allowed: float, missing: frozenset[int]) -> None:
    trials = trials_of(losses, [], missing)
    found = trials.smallest(lambda trial: float(trial.discarded()) <= allowed)
    if found is None:
        assert len(losses) in missing or losses[-1] > allowed
    else:
        assert found not in missing and losses[found - 1] <= allowed
        assert found == 1 or found - 1 in missing or losses[found - 2] > allowed


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0, 1), st.integers(-2, 70))
def test_sizes_that_are_known_to_be_too_small_are_not_tried(losses: list[float], allowed: float, least: int) -> None:
    losses, seen = sorted(losses, reverse=True), []
    found = trials_of(losses, seen).smallest(lambda trial: trial.within(allowed), least)
    good = [i + 1 for i, loss in enumerate(losses) if loss <= allowed and i + 1 >= least]
    assert found == (good[0] if good else None)
    assert all(size >= least for size in seen)
