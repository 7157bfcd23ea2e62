from __future__ import annotations

import pytest
import torch

from compressm.linalg.modal import modal_basis, state_scales
from compressm.testing.systems import rescale_states, ring_system


def real_matrix(*blocks: tuple[float, float]) -> torch.Tensor:
    parts = [torch.tensor([[x, -y], [y, x]]) if y else torch.tensor([[x]]) for x, y in blocks]
    a = torch.block_diag(*parts).double()
    turn = torch.randn(len(a), len(a), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.solve(turn, a @ turn)


def test_conjugate_pairs_are_one_entry_and_real_poles_another() -> None:
    a = real_matrix((0.5, 0.3), (0.8, 0), (-0.2, 0.9), (-0.4, 0), (0.0, 0))
    basis = modal_basis(a, merge_pairs=True)
    assert basis.slots == 5
    assert int(basis.is_real.sum()) == 3
    assert float(basis.poles.imag.min()) == 0
    assert torch.allclose(a.to(torch.complex128) @ basis.right, basis.right * basis.poles, atol=1e-12)
    assert torch.allclose(basis.left @ basis.right, torch.eye(5, dtype=torch.complex128), atol=1e-12)
    assert bool((basis.right[:, basis.is_real].imag == 0).all())
    assert 1 <= basis.conditioning < 1e6


def test_without_merging_every_pole_is_an_entry() -> None:
    basis = modal_basis(real_matrix((0.5, 0.3), (0.8, 0)), merge_pairs=False)
    assert basis.slots == 3
    assert not bool(basis.is_real.any())


@pytest.mark.parametrize("coupling", [1.0, 1e-9])
def test_a_defective_matrix_says_so(coupling: float) -> None:
    basis = modal_basis(torch.tensor([[0.5, coupling], [0.0, 0.5]], dtype=torch.float64), merge_pairs=True)
    assert basis.conditioning > 1e6
    exact = modal_basis(torch.diag(torch.tensor([0.5, 0.5], dtype=torch.float64)), merge_pairs=True)
    assert exact.conditioning == pytest.approx(1)


def test_an_empty_matrix() -> None:
    basis = modal_basis(torch.zeros(0, 0, dtype=torch.float64), merge_pairs=True)
    assert (basis.slots, basis.conditioning) == (0, 1.0)


def test_state_scales_give_the_weights_the_size_of_the_layers() -> None:
    """Whatever the scale of the reduced states, the stored ones have the layer's median ratio."""
    system = ring_system(9, 2, 2)
    wild = rescale_states(system, torch.logspace(-6, 6, 9, dtype=torch.float64))
    scales = state_scales(system, wild.a, wild.b, wild.c)
    tamed = rescale_states(wild, scales)
    decay = (1 - tamed.a.abs() ** 2).sqrt()
    ratios = tamed.b.norm(dim=-1) / decay / tamed.c.norm(dim=-2)
    assert torch.allclose(ratios, ratios[0].expand(9), rtol=1e-9)
    reference = (system.b.norm(dim=-1) / decay).median() / system.c.norm(dim=-2).median()
    assert float(ratios[0]) == pytest.approx(float(reference), rel=1e-9)


def test_state_scales_of_states_without_input_or_output() -> None:
    system = ring_system(3, 1, 1)
    b, c = system.b.clone(), system.c.clone()
    b[0], c[:, 1] = 0, 0
    assert torch.equal(state_scales(system, system.a, b, c)[:2], torch.ones(2, dtype=torch.float64))
    assert bool(torch.isfinite(state_scales(system, system.a, b, torch.zeros_like(c))).all())
