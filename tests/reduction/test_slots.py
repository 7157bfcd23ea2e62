"""The stored form of a reduced system and the maps between old and new states, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.linalg.forms import Frame, in_frame, realify
from compressm.linalg.gramians import gramian_factors
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.norms import difference, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import OrderChoice
from compressm.reduction.reduce import reduce_diagonal
from compressm.reduction.reducers import BalancedTruncation
from compressm.reduction.result import ConjugateLinear, GramianSource, Reduction
from compressm.reduction.weighting import Limits, Weighting
from compressm.testing.systems import Defect, PoleKind, Recipe, build_diagonal, ring_system

MIXED = (PoleKind.RING, PoleKind.POSITIVE, PoleKind.SLOW, PoleKind.NEGATIVE, PoleKind.RING, PoleKind.FAST)


def white(system: StateSpace, frame: Frame) -> Weighting:
    factors = gramian_factors(system, frame)
    return Weighting(factors, hankel_spectrum(factors), GramianSource.WHITE, GramianSource.WHITE)


def cut(system: StateSpace, slots: int, frame: Frame = Frame.REAL, exact: bool = False) -> Reduction:
    states = slots * (2 if frame is Frame.REAL else 1)
    choice = OrderChoice(states, slots, exact)
    reduction = reduce_diagonal(system, white(system, frame), choice, BalancedTruncation(), Limits())
    assert isinstance(reduction, Reduction)
    return reduction


def real_poles(reduction: Reduction) -> Tensor:
    return reduction.system.a.imag == 0


def with_real_poles() -> tuple[StateSpace, Reduction]:
    for seed in range(20):
        system = build_diagonal(Recipe(MIXED, 2, 3, seed))
        reduction = cut(system, 4)
        if 0 < int(real_poles(reduction).sum()) < reduction.order:
            return system, reduction
    raise AssertionError("no case with real poles and pairs")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


@pytest.mark.parametrize("conjugate", [False, True])
def test_conjugate_linear_maps_and_their_adjoints(conjugate: bool) -> None:
    """Adjoint: what autograd gives for a real loss of the mapped weights."""
    transform = ConjugateLinear(normal(3, 5), normal(3, 5, seed=1) if conjugate else None)
    x, c = normal(5, 2, seed=2).requires_grad_(), normal(4, 3, seed=3).requires_grad_()
    loss_x, loss_c = normal(3, 2, seed=4), normal(4, 5, seed=5)
    (transform(x) * loss_x).real.sum().backward()
    (transform.right(c) * loss_c).real.sum().backward()
    assert torch.allclose(transform.adjoint(loss_x.conj()), x.grad)
    assert torch.allclose(transform.right_adjoint(loss_c.conj()), c.grad)
    read = (c @ transform(x)).real  # Re(c (M x + N conj x)) = Re(c' x)
    assert torch.allclose(read, (transform.right(c) @ x).real)


@pytest.mark.parametrize("frame", list(Frame))
@pytest.mark.parametrize("seed", range(4))
def test_the_maps_give_the_new_weights_from_the_old(frame: Frame, seed: int) -> None:
    system = build_diagonal(Recipe(MIXED, 2, 3, seed, frozenset({Defect.RESCALED}) if seed % 2 else frozenset()))
    reduction = cut(system, 3, frame)
    small = reduction.system
    assert torch.allclose(reduction.restrict(system.b), small.b, rtol=1e-9, atol=1e-12 * float(small.b.abs().max()))
    assert torch.allclose(reduction.embed.right(system.c), small.c, rtol=1e-9, atol=1e-12 * float(small.c.abs().max()))


@pytest.mark.parametrize("frame", list(Frame))
def test_restrict_is_a_left_inverse_of_embed_on_real_states(frame: Frame) -> None:
    """New states that a trajectory can reach come back: eta of a real pole is one real number, not two."""
    _, reduction = with_real_poles()
    system = build_diagonal(Recipe(MIXED, 2, 3, 1))
    reduction = reduction if frame is Frame.REAL else cut(system, 3, frame)
    reached = reduction.system.b[:, :1] * torch.ones(1, dtype=torch.float64)
    assert torch.allclose(reduction.restrict(reduction.embed(reached)), reached, atol=1e-9)


def test_gradients_follow_the_chain_rule_through_the_embedding() -> None:
    """With old weights B = embed(B') and C = restrict.right(C'), a loss's gradient in B' is embed.adjoint(grad B)."""
    system, reduction = with_real_poles()
    probe_b, probe_c = normal(*system.b.shape, seed=1), normal(*system.c.shape, seed=2)

    def loss(b: Tensor, c: Tensor) -> Tensor:
        return ((b * probe_b).real.sin().sum() + (c * probe_c).real.square().sum()) * 0.5

    small_b = reduction.system.b.clone().requires_grad_()
    small_c = reduction.system.c.clone().requires_grad_()
    b, c = reduction.embed(small_b), reduction.restrict.right(small_c)
    loss(b, c).backward()
    old_b, old_c = b.detach().requires_grad_(), c.detach().requires_grad_()
    loss(old_b, old_c).backward()
    assert torch.allclose(reduction.embed.adjoint(old_b.grad), small_b.grad, rtol=1e-10)
    assert torch.allclose(reduction.restrict.right_adjoint(old_c.grad), small_c.grad, rtol=1e-10)


@pytest.mark.parametrize("frame", list(Frame))
def test_transported_gradients_are_those_of_the_reduced_model(frame: Frame) -> None:
    """Near an exact reduction (idle states removed) the transported gradient is the small model's own."""
    kept, idle = ring_system(4, 2, 2), ring_system(3, 2, 2, seed=5)
    a = torch.cat([kept.a, idle.a])
    b, c = torch.cat([kept.b, idle.b * 1e-7]), torch.cat([kept.c, idle.c * 1e-7], -1)
    system = StateSpace(a, b, c)
    reduction = cut(system, 4, frame)
    target = normal(30, 2, 2).real

    def gradients(s: StateSpace) -> tuple[Tensor, Tensor]:
        b, c = s.b.clone().requires_grad_(), s.c.clone().requires_grad_()
        powers = s.a ** torch.arange(30).unsqueeze(-1)
        (((c * powers.unsqueeze(-2)) @ b).real - target).square().sum().backward()
        return b.grad, c.grad

    old_b, old_c = gradients(system)
    new_b, new_c = gradients(reduction.system)
    for transported, true in (
        (reduction.embed.adjoint(old_b), new_b),
        (reduction.restrict.right_adjoint(old_c), new_c),
    ):
        cosine = (transported.conj() * true).real.sum() / transported.norm() / true.norm()
        assert float(cosine) > 0.999
        assert torch.allclose(transported, true, atol=1e-4 * float(true.abs().max()))


def test_pairs_are_merged_and_real_poles_representable() -> None:
    system, reduction = with_real_poles()
    small, real = reduction.system, real_poles(reduction)
    assert reduction.real_order == int((2 - real.long()).sum())
    assert float(small.a.imag.min()) >= 0
    assert realify(small).order == 2 * reduction.order
    assert small.output == "real"
    dense = BalancedTruncation().reduce(
        realify(system), white(system, Frame.REAL).factors, white(system, Frame.REAL).spectrum, reduction.real_order
    )
    assert hinf_norm(difference(dense.system, small)) < 1e-9 * hinf_norm(system)


def test_no_gradient_of_a_stored_state_vanishes() -> None:
    """A real pole with real b and c would sit on a saddle: angle and imaginary parts would never train."""
    _, reduction = with_real_poles()
    small = reduction.system
    radius, angle = small.a.abs().requires_grad_(), torch.angle(small.a).requires_grad_()
    parts = [t.clone().requires_grad_() for t in (small.b.real, small.b.imag, small.c.real, small.c.imag)]
    a = radius * torch.exp(1j * angle)
    b, c = torch.complex(parts[0], parts[1]), torch.complex(parts[2], parts[3])
    response = ((c * (a ** torch.arange(12).unsqueeze(-1)).unsqueeze(-2)) @ b).real
    weights = normal(*response.shape, seed=9).real
    (response * weights).sum().backward()
    for tensor in (radius, angle, *parts):
        assert float(tensor.grad.abs().min()) > 1e-6 * float(tensor.grad.abs().max())
    real = real_poles(reduction)
    for tensor in (small.b[real], small.c[:, real]):
        assert float(tensor.real.abs().min()) > 0.1 * float(tensor.imag.abs().min())
        assert float(tensor.imag.abs().min()) > 0.1 * float(tensor.real.abs().min())


def test_stored_weights_have_the_size_of_the_layers() -> None:
    system = ring_system(32, 4, 4)
    reduction = cut(system, 12)
    for old, new in ((system.b.abs(), reduction.system.b.abs()), (system.c.abs(), reduction.system.c.abs())):
        assert 0.05 < float(new.median() / old.median()) < 20


@pytest.mark.parametrize("frame", list(Frame))
def test_padding_adds_idle_states_that_can_learn(frame: Frame) -> None:
    system = build_diagonal(Recipe((PoleKind.RING, PoleKind.REPEATED, PoleKind.REPEATED) * 3, 1, 2, 1))
    plain, padded = cut(system, 7, frame), cut(system, 7, frame, exact=True)
    assert plain.order < 7
    assert padded.order == 7
    assert padded.real_order == plain.real_order
    assert hinf_norm(difference(plain.system, padded.system)) < 1e-12 * hinf_norm(system)
    idle = slice(plain.order, None)
    assert float(padded.system.c[:, idle].abs().max()) == 0
    assert float(padded.system.b[idle].abs().min()) > 0
    assert len({complex(z) for z in padded.system.a[idle]}) == 7 - plain.order  # none alike: they can part ways
    assert float(padded.system.a[idle].abs().max()) < 1
    n = system.order
    assert padded.restrict.linear.shape == (7, n)
    assert padded.embed.linear.shape == (n, 7)
    ones = torch.ones(n, 1, dtype=torch.complex128)
    assert float(padded.restrict(ones)[idle].abs().max()) == 0


def test_a_map_of_nothing_leaves_one_idle_state() -> None:
    for defect in (Defect.ZERO_B, Defect.ZERO_C):
        system = build_diagonal(Recipe((PoleKind.RING,) * 4, 2, 3, 1, frozenset({defect}), feedthrough=True))
        for frame in Frame:
            reduction = cut(system, 2, frame)
            assert reduction.order == 1
            assert reduction.real_order == 0
            assert float(reduction.system.c.abs().max()) == 0
            assert float(reduction.system.b.abs().min()) > 0
            assert torch.equal(reduction.system.d, system.d)
            assert hinf_norm(difference(system, reduction.system)) == 0


def test_the_complex_frame_keeps_a_complex_map() -> None:
    system = ring_system(6, 2, 2)
    reduction = cut(system, 6, Frame.COMPLEX)
    full, small = (StateSpace(s.a, s.b, s.c, output="complex") for s in (system, reduction.system))
    assert hinf_norm(difference(in_frame(full, Frame.COMPLEX), small)) < 1e-9 * hinf_norm(full)
    assert reduction.restrict.conjugate is None
    assert reduction.embed.conjugate is None
