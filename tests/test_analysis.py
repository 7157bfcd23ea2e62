"""One layer's analysis: which Gramians decide, what happens where a reduction cannot be stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.base import Form
from compressm.adapters.calibration import Capture
from compressm.adapters.lru import LRUAdapter
from compressm.adapters.registry import LayerRef, find_adapter
from compressm.analysis import Decision, LayerAnalysis, read_system, significant_tail
from compressm.compress import compress_
from compressm.errors import AdapterError, InvalidSystemError, UnstableSystemError, UnsupportedReductionError
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.linalg.forms import Frame
from compressm.linalg.hankel import hankel_singular_values
from compressm.linalg.norms import difference, hinf_norm
from compressm.reduction.criteria import ErrorBound, FixedOrder, HankelEnergy
from compressm.reduction.keeping import BalancedSelection
from compressm.reduction.reducers import BalancedTruncation, SingularPerturbation
from compressm.reduction.result import GramianSource
from compressm.reduction.selection import ModalTruncation
from compressm.reduction.weighting import Limits
from compressm.settings import Balancing, CompressionSettings

WHITE, DATA, LOSS = GramianSource.WHITE, GramianSource.DATA, GramianSource.LOSS


def make(kind: type[LRU | DenseSSM] = LRU, width: int = 4, order: int = 32, seed: int = 0) -> LRU | DenseSSM:
    return kind(width, order, generator=torch.Generator().manual_seed(seed))


def ref(layer: nn.Module) -> LayerRef:
    adapter = find_adapter(layer)
    assert adapter is not None
    return LayerRef("blocks.0.ssm", layer, adapter)


def decide(layer: nn.Module, capture: Capture | None = None, *, reduce: bool = True, **settings: Any) -> Decision:
    settings = {"criterion": FixedOrder(2), **settings}
    return LayerAnalysis(ref(layer), CompressionSettings(**settings), capture, None).decide(reduce=reduce)


def coloured(seed: int, length: int = 64, width: int = 4) -> Capture:
    """A slow random input and a gradient that is loud near the end."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(2, length, width, generator=g).cumsum(1) @ torch.randn(width, width, generator=g)
    gradient = torch.randn(2, length, width, generator=g) * torch.linspace(0, 1, length)[:, None] ** 4
    return Capture([(u, None)], [(gradient, None)])


def tones(seed: int) -> Capture:
    """Inputs and gradients that are one tone each, of different frequencies, with a little noise."""
    g, t = torch.Generator().manual_seed(seed), torch.arange(64)[None, :, None]

    def tone() -> Tensor:
        phase = t * torch.rand(2, 1, 1, generator=g) * 3.1 + 6 * torch.rand(2, 1, 1, generator=g)
        return torch.cos(phase) * torch.randn(2, 1, 4, generator=g)

    u, gradient = tone(), tone()
    u, gradient = (s + 0.1 * torch.randn(2, 64, 4, generator=g) for s in (u, gradient))
    return Capture([(u, None)], [(gradient, None)])


@pytest.mark.parametrize(("controllability", "observability"), [(DATA, WHITE), (WHITE, LOSS), (WHITE, WHITE)])
def test_one_sided_weighting_is_stable(controllability: GramianSource, observability: GramianSource) -> None:
    for seed in range(25):
        layer, capture = make(seed=seed), coloured(seed) if seed % 2 else tones(seed)
        for order in (1, 2, 4, 10):
            done = decide(
                layer,
                capture,
                criterion=FixedOrder(order),
                controllability=controllability,
                observability=observability,
            )
            assert done.reduction is not None and done.reduction.system.is_stable()
            assert (done.reduction.controllability, done.reduction.observability) == (controllability, observability)
            assert not done.fallbacks


def test_two_sided_weighting_that_is_unstable_falls_back_to_data_and_white() -> None:
    done = decide(make(seed=27), tones(27))
    assert done.reduction is not None and done.reduction.system.is_stable()
    assert (done.reduction.controllability, done.reduction.observability) == (DATA, WHITE)
    (said,) = done.fallbacks
    assert said.startswith("data/loss Gramians: the reduced system of 4 states has the spectral radius 1.06")
    one_sided = decide(make(seed=27), tones(27), observability=WHITE)
    assert torch.equal(done.values, one_sided.values)
    assert torch.equal(done.reduction.system.a, one_sided.reduction.system.a)


def test_two_sided_weighting_that_is_stable_is_used() -> None:
    done = decide(make(seed=1), tones(1))
    assert done.fallbacks == () and (done.reduction.controllability, done.reduction.observability) == (DATA, LOSS)


def test_a_pole_moved_almost_to_the_circle_counts_as_unstable() -> None:
    done = decide(make(seed=27), tones(27), limits=Limits(slowdown=1e-9))
    assert "data/loss Gramians: the reduced system of 4 states" in done.fallbacks[0]
    wide = decide(make(seed=1), tones(1), limits=Limits(slowdown=1e-3))  # the gap must grow a thousandfold
    assert (wide.reduction.controllability, wide.reduction.observability) == (DATA, WHITE)


def test_a_measured_tolerance_falls_back_where_no_order_is_stable() -> None:
    layer, capture = make(seed=27), tones(27)
    norm = hinf_norm(decide(layer, capture, controllability=WHITE, observability=WHITE).reduction.system)
    wanted = decide(layer, capture, criterion=ErrorBound(norm / 4), observability=WHITE)
    done = decide(layer, capture, criterion=ErrorBound(norm / 4), limits=Limits(slowdown=1e-9))
    assert wanted.reduction is not None and done.reduction is not None and done.choice == wanted.choice
    assert (done.reduction.controllability, done.reduction.observability) == (DATA, WHITE)
    assert "data/loss Gramians: no order that was tried is stable; the reduced system of" in done.fallbacks[0]
    assert hinf_norm(difference(LRUAdapter().read(layer).to_double(), done.reduction.system)) <= norm / 4 * 1.03


def test_a_short_horizon_that_is_unstable_falls_back_to_the_infinite_one() -> None:
    layer = LRU(2, 16, generator=torch.Generator().manual_seed(8))
    done = decide(layer, horizon=3, controllability=WHITE, observability=WHITE)
    assert done.reduction is not None and done.reduction.system.is_stable()
    assert done.fallbacks[0].startswith("white/white Gramians over 3 steps: the reduced system of 4 states has the")
    assert done.weighting is not None and done.weighting.horizon is None
    infinite = decide(layer, controllability=WHITE, observability=WHITE)
    assert torch.equal(done.reduction.system.a, infinite.reduction.system.a)


def test_a_horizon_on_data_falls_back_step_by_step() -> None:
    done = decide(make(seed=27), tones(27), horizon=3)
    tried = [said.split(" Gramians")[0] for said in done.fallbacks]
    assert tried[0] == "data/loss" and done.reduction is not None and done.reduction.system.is_stable()
    assert tried == ["data/loss", "data/white", "white/white"][: len(tried)]


def test_the_reduction_of_an_undamped_layer_needs_a_horizon_or_data() -> None:
    layer = make(DenseSSM, order=6)
    with torch.no_grad():
        layer.A.copy_(torch.block_diag(*[torch.tensor([[0.8, -0.6], [0.6, 0.8]])] * 3) * (1 + 1e-7))
    with pytest.raises(UnstableSystemError, match=r"blocks\.0\.ssm: infinite-horizon Gramians .*finite horizon"):
        decide(layer)
    values = decide(layer, reduce=False, horizon=20, controllability=WHITE, observability=WHITE).values
    assert bool((values > 0).any())


def test_without_passes_the_gramians_are_white_and_that_is_said() -> None:
    done = decide(make())
    assert (done.reduction.controllability, done.reduction.observability) == (WHITE, WHITE)
    assert done.fallbacks == (
        "data/loss Gramians: no inputs were captured, or none without NaN and infinite values",
        "data/white Gramians: no inputs were captured, or none without NaN and infinite values",
    )


@pytest.mark.parametrize(
    ("length", "kept", "said"),
    [(64, False, "all positions of the inputs captured are padding"), (0, True, "captured have no time steps")],
)
def test_passes_that_say_nothing_are_told_from_none(length: int, kept: bool, said: str) -> None:
    done = decide(make(), Capture([(torch.randn(2, length, 4), torch.full((2, length), kept))]))
    assert [text.split(": ")[0] for text in done.fallbacks] == ["data/loss Gramians", "data/white Gramians"]
    assert all(said in text for text in done.fallbacks)


def test_without_gradients_the_inputs_still_count() -> None:
    for gradients in ([], [(torch.zeros(2, 64, 4), None)]):
        done = decide(make(), Capture(coloured(0).inputs, gradients))
        assert (done.reduction.controllability, done.reduction.observability) == (DATA, WHITE)
        wanted = (
            "the gradients captured are all zero"
            if gradients
            else "no gradients were captured, or none without NaN and infinite values"
        )
        assert done.fallbacks == (f"data/loss Gramians: {wanted}",)


@pytest.mark.parametrize("balancing", list(Balancing))
def test_the_values_are_those_of_the_frame(balancing: Balancing) -> None:
    layer = make(order=10)
    done = decide(layer, reduce=False, balancing=balancing, controllability=WHITE, observability=WHITE)
    wanted = hankel_singular_values(read_system(ref(layer)), balancing.frame)
    assert len(wanted) == (20 if balancing is Balancing.REAL else 10)
    assert torch.allclose(done.values, wanted, rtol=1e-12)
    assert done.reduction is None and done.choice is not None and done.choice.slots == 2


def test_a_dense_layer_has_the_real_frame() -> None:
    analysis = LayerAnalysis(ref(make(DenseSSM)), CompressionSettings(balancing=Balancing.COMPLEX), None, None)
    assert analysis.frame is Frame.REAL and analysis.per_slot == 1


def test_ill_conditioned_eigenvectors_lower_the_order() -> None:
    layer, settings = make(order=12), {"controllability": WHITE, "observability": WHITE, "criterion": FixedOrder(6)}
    free = decide(layer, **settings)
    limit = free.reduction.conditioning * 0.99
    tight = decide(layer, limits=Limits(conditioning=limit), **settings)
    assert tight.reduction.real_order < free.reduction.real_order
    assert tight.reduction.conditioning <= limit
    assert "eigenvectors too ill-conditioned" in tight.fallbacks[0] and "lower order" in tight.fallbacks[0]


def test_a_reduction_that_cannot_be_diagonalized_is_not_made() -> None:
    done = decide(make(order=12), limits=Limits(conditioning=0.5), controllability=WHITE, observability=WHITE)
    assert done.reduction is None and done.choice is None
    assert "no order could be diagonalized" in done.fallbacks[-2] and done.fallbacks[-1] == "not cut"


def test_a_layer_that_maps_everything_to_zero_keeps_one_idle_state() -> None:
    for kind, parts in ((LRU, ("C_re", "C_im")), (DenseSSM, ("B",))):
        layer = make(kind, order=6)
        with torch.no_grad():
            for part in parts:
                getattr(layer, part).zero_()
        done = decide(layer, criterion=HankelEnergy(0.02), controllability=WHITE, observability=WHITE)
        assert done.reduction is not None and (done.reduction.order, done.reduction.real_order) == (1, 0)
        assert not bool(done.reduction.system.c.any())


def test_an_empty_layer_stays_as_it_is() -> None:
    for kind in (LRU, DenseSSM):
        done = decide(make(kind, order=0), criterion=HankelEnergy(0.02), controllability=WHITE, observability=WHITE)
        assert done.reduction is None and done.choice is None and len(done.values) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "name"), [(LRU, "B_re"), (LRU, "nu_log"), (DenseSSM, "A"), (DenseSSM, "D")])
def test_weights_that_are_not_finite(kind: type[LRU | DenseSSM], name: str, value: float) -> None:
    layer = make(kind, order=4)
    with torch.no_grad():
        getattr(layer, name).view(-1)[1] = value
    if name == "nu_log" and value > 0:  # a pole at 0, which is a sound system
        decide(layer, controllability=WHITE, observability=WHITE)
        return
    with pytest.raises(InvalidSystemError, match=r"^blocks\.0\.ssm: .*NaN"):
        decide(layer)


def test_an_unstable_dense_layer_is_named() -> None:
    layer = make(DenseSSM, order=4)
    with torch.no_grad():
        layer.A.mul_(1.5)
    with pytest.raises(UnstableSystemError, match=r"^blocks\.0\.ssm: .*spectral radius is 1\.\d+\. Lower the learning"):
        decide(layer)


class Doubled(LRU):
    """A layer with an option that the adapter of its parent does not know."""

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return 2 * super().forward(u, mask)


class Mirrored(LRU):
    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(u.flip(1), mask).flip(1)


class Biased(LRU):
    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(u, mask) + 0.5


@pytest.mark.parametrize("kind", [Doubled, Mirrored, Biased])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_misread_layer_is_found_before_anything_is_cut(kind: type[LRU], dtype: torch.dtype) -> None:
    with pytest.raises(AdapterError, match=rf"^blocks\.0\.ssm: LRUAdapter read .*{kind.__name__}'s own .*Nothing was"):
        read_system(ref(make(kind, order=8).to(dtype)))
    read_system(ref(make(LRU, order=8).to(dtype)))


def test_a_layer_that_needs_more_than_an_input() -> None:
    class Conditioned(LRU):
        def forward(self, u: Tensor, mask: Tensor | None, gate: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(u, mask) * gate

    with pytest.raises(AdapterError, match=r"blocks\.0\.ssm: the forward pass failed on an input of shape \(2, 8, 4\)"):
        read_system(ref(Conditioned(4, 8)))


def test_verification_ignores_autocast_hooks_and_gradients() -> None:
    layer, seen = make(), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read_system(ref(layer))
    assert not seen and all(p.grad is None for p in layer.parameters())


def test_singular_perturbation_wants_a_full_d() -> None:
    with pytest.raises(
        UnsupportedReductionError, match=r"blocks\.0\.ssm: SingularPerturbation changes D to a full p x"
    ):
        decide(make(), reducer=SingularPerturbation())
    assert decide(make(DenseSSM), reducer=SingularPerturbation()).reduction.order == 2


def test_modal_truncation_wants_a_diagonal_system() -> None:
    with pytest.raises(UnsupportedReductionError, match=r"blocks\.0\.ssm: ModalTruncation keeps states of a diagonal"):
        decide(make(DenseSSM), reducer=ModalTruncation())
    done = decide(make(), reducer=ModalTruncation())
    assert done.reduction.keep is not None and len(done.reduction.keep) == 2 and len(done.values) == 32


def test_a_layer_that_admits_a_choice_only() -> None:
    class Chosen(LRUAdapter):
        form = Form.SELECTION

    chosen = LayerRef("blocks.0.ssm", make(), Chosen())
    for reducer in (BalancedTruncation(), BalancedSelection(), ModalTruncation()):
        analysis = LayerAnalysis(chosen, CompressionSettings(FixedOrder(2), reducer=reducer), None, None)
        reduction = analysis.decide(reduce=True).reduction
        assert reduction.order == 2 and reduction.keep is not None and not analysis.has_bound


@pytest.mark.parametrize(("captured", "horizon"), [(None, 1024), (0, 1024), (40, 40)])
def test_a_layer_without_damping_gets_a_finite_horizon(captured: int | None, horizon: int) -> None:
    """|pole| = 1: infinite-horizon Gramians do not exist."""

    class Undamped(LRUAdapter):
        form = Form.SELECTION

        def read(self, layer):
            log_a = 1j * super().read(layer).log_a.imag
            return replace(super().read(layer), a=log_a.exp(), log_a=log_a)

        def response(self, layer, u):
            return self.read(layer).simulate(u.double())

    ref = LayerRef("layer", make(), Undamped())
    u = torch.randn(2, captured or 0, ref.adapter.read(ref.module).inputs, generator=torch.Generator().manual_seed(0))
    capture = None if captured is None else Capture([(u, None)], [(u, None)])
    white = {"controllability": GramianSource.WHITE, "observability": GramianSource.WHITE}
    done = LayerAnalysis(ref, CompressionSettings(FixedOrder(2), **white), capture, None).decide(reduce=True)
    assert done.weighting.horizon == horizon
    assert done.reduction.order == 2 and not done.weighting.is_white


def test_tails_are_fractions_and_bounds() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert significant_tail(values, 2) == (0.3, 6.0)
    assert significant_tail(values, 4) == (0.0, 0.0)
    assert significant_tail(torch.zeros(3, dtype=torch.float64), 1) == (0.0, 0.0)


def test_an_analysis_changes_nothing_and_draws_no_random_numbers() -> None:
    layer = make()
    before, random = {k: v.clone() for k, v in layer.state_dict().items()}, torch.get_rng_state()
    decide(layer, coloured(0))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_states_that_overflow_on_the_captured_passes() -> None:
    layer = make(DenseSSM, order=4)
    with torch.no_grad():
        layer.A.mul_(3)
    with pytest.raises(UnstableSystemError, match=r"^blocks\.0\.ssm: .*spectral radius is [23]\."):
        decide(layer, Capture([(torch.randn(2, 500, 4), None)], [(torch.randn(2, 500, 4), None)]))


def test_a_layer_without_parameters_is_read_by_its_buffers() -> None:
    layer = LRU(3, 6, generator=torch.Generator().manual_seed(0))
    values = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for name, value in values.items():
        delattr(layer, name)
        layer.register_buffer(name, value)
    model = torch.nn.ModuleList([layer])
    report = compress_(model, CompressionSettings(FixedOrder(4)))
    assert report.orders() == {"0": 4}
    assert tuple(model[0].nu_log.shape) == (4,)
