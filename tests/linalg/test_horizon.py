from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compressm.linalg import horizon
from compressm.linalg.forms import Frame, in_frame
from compressm.linalg.horizon import horizon_norms
from compressm.linalg.norms import h2_norm, hinf_norm
from compressm.testing.systems import ring_system, stack_systems


def test_a_long_horizon_gives_the_norms() -> None:
    system = ring_system(8, 2, 3, smallest=0.5, largest=0.9)
    norms = horizon_norms(system, 512)
    assert norms.energy == pytest.approx(h2_norm(system), rel=1e-9)
    assert norms.gain == pytest.approx(hinf_norm(system), rel=1e-3)
    assert norms.gain <= hinf_norm(system) * (1 + 1e-9)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 3)])
def test_no_input_over_the_horizon_is_amplified_by_more(inputs: int, outputs: int) -> None:
    """The norm of the block Toeplitz matrix, built entry by entry."""
    system, steps = ring_system(5, inputs, outputs, smallest=0.9, largest=0.9999), 24
    h = system.markov_parameters(steps)
    toeplitz = torch.zeros(steps * outputs, steps * inputs, dtype=torch.float64)
    for row in range(steps):
        for column in range(row + 1):
            block = h[row - column]
            toeplitz[row * outputs : (row + 1) * outputs, column * inputs : (column + 1) * inputs] = block
    amplified = float(torch.linalg.matrix_norm(toeplitz, 2))
    norms = horizon_norms(system, steps)
    assert amplified <= norms.gain * 1.083
    assert norms.energy == pytest.approx(float(h.norm()))


def test_a_bank_has_the_largest_of_its_systems_and_dense_or_undamped_is_no_matter() -> None:
    systems = [ring_system(4, 1, 1, seed=i) for i in range(3)]
    bank = stack_systems(systems)
    each = [horizon_norms(s, 50) for s in systems]
    assert horizon_norms(bank, 50) == pytest.approx((max(n.gain for n in each), max(n.energy for n in each)))
    assert horizon_norms(in_frame(bank, Frame.REAL), 50) == pytest.approx(horizon_norms(bank, 50))


@pytest.mark.parametrize("steps", [1, 23, 24])
@pytest.mark.parametrize("output", ["real", "complex"])
def test_the_grid_in_parts_is_the_grid(steps: int, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transform over all steps against transforms of folded responses, where the parts divide the steps or not."""
    system = replace(ring_system(5, 2, 3, smallest=0.9, largest=0.9999), output=output)
    whole = horizon_norms(system, steps)
    points = torch.fft.fft(system.markov_parameters(steps), 4 * steps, dim=-3)
    assert whole.gain == pytest.approx(float(torch.linalg.matrix_norm(points, ord=2).max()), rel=1e-12)
    monkeypatch.setattr(horizon, "_NUMBERS", 36)
    in_parts = horizon_norms(system, steps)
    assert in_parts.energy == whole.energy
    assert in_parts.gain == pytest.approx(whole.gain, rel=1e-12 if steps != 23 else 0.08)
