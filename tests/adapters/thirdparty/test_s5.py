"""S5 of s5-pytorch, the real package."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm import compress_
from compressm.adapters.calibration import Calibration
from compressm.adapters.registry import find_adapter, find_layers
from compressm.adapters.thirdparty.s5 import S5Adapter, S5SSMAdapter
from compressm.errors import AdapterError
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.result import GramianSource
from compressm.reduction.selection import ModalTruncation
from compressm.settings import CompressionSettings
from compressm.surgery.parameters import apply_update
from compressm.testing import check_adapter
from compressm.testing.rewriting import rewrite

WHITE = GramianSource.WHITE


def cut_to(order: int) -> CompressionSettings:
    return CompressionSettings(FixedOrder(order), controllability=WHITE, observability=WHITE, exact_norms=True)


def make(s5: Any, method: str = "zoh", width: int = 3, order: int = 8, **options: Any) -> nn.Module:
    """A layer with generic weights and steps between 0.01 and 0.3."""
    torch.manual_seed(2)
    layer = s5.S5(width, order, dt_min=0.01, dt_max=0.3, **options)
    layer.seq.discretize = getattr(s5, f"discretize_{method}")
    with torch.no_grad():
        layer.seq.Lambda.real.mul_(1 + torch.rand(order))
        layer.seq.Lambda.imag.mul_(1 + 0.1 * torch.rand(order))
    return layer


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize(("width", "order", "to"), [(1, 4, 2), (3, 8, 3), (2, 12, 7)])
def test_the_laws(s5: Any, method: str, width: int, order: int, to: int) -> None:
    check_adapter(lambda: make(s5, method, width, order), order=to)


def test_the_laws_of_the_inner_layer_alone(s5: Any) -> None:
    check_adapter(lambda: make(s5).seq)


def test_which_adapter(s5: Any) -> None:
    layer = make(s5)
    assert type(find_adapter(layer)) is S5Adapter and type(find_adapter(layer.seq)) is S5SSMAdapter
    block = s5.S5Block(4, 8, False)
    assert [ref.name for ref in find_layers(block)] == ["s5"]


def test_both_partners_of_a_pair_become_one_state(s5: Any) -> None:
    # At the start the poles come in conjugate pairs with conjugate weights: a real system of order P in P slots.
    torch.manual_seed(0)
    layer = s5.S5(2, 12, dt_min=0.01, dt_max=0.3)
    with torch.no_grad():  # pairs lie at i and P - 1 - i
        layer.seq.log_step[6:] = layer.seq.log_step[:6].flip(0)
    report = compress_(layer, cut_to(6)).layers[0]
    assert layer.seq.Lambda.shape == (6,) and report.real_order == 12
    assert report.hinf_error < 1e-4 * report.hinf_norm


def test_steps_stay_among_the_learned_ones(s5: Any) -> None:
    layer = make(s5)
    steps = set(layer.seq.log_step.tolist())
    compress_(layer, cut_to(3))
    assert set(layer.seq.log_step.tolist()) <= steps


def test_training_goes_on(s5: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), s5.S5Block(4, 8, False), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    u = torch.randn(8, 24, 1)

    def steps(count: int) -> float:
        for _ in range(count):
            loss = (model(u) - u.cumsum(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    with Calibration(model) as calibration:
        before = steps(20)
    report = compress_(model, CompressionSettings(FixedOrder(4)), optimizer=optimizer, calibration=calibration)
    assert (report.layers[0].controllability, report.warnings) == ("data", ())
    assert model[1].s5.seq.C.shape == (4, 4)
    assert steps(20) < before


@pytest.mark.parametrize(
    ("options", "found"),
    [({"liquid": True}, "liquid=True.*depends on the input")],
)
def test_options_that_cannot_be_cut(s5: Any, options: dict[str, Any], found: str) -> None:
    model = nn.Sequential(make(s5, **options))
    with pytest.raises(AdapterError, match=found):
        compress_(model, cut_to(3))
    assert compress_(nn.Sequential(model[0]), cut_to(3), adapters={s5.S5: None}).layers == ()


class TestBothWays:
    @pytest.mark.parametrize("method", ["zoh", "bilinear"])
    def test_the_laws(self, s5: Any, method: str) -> None:
        check_adapter(lambda: make(s5, method, bidir=True), order=3)
        check_adapter(lambda: make(s5, method, bidir=True).seq, order=5)

    def test_gradients_follow_a_change_of_states(self, s5: Any) -> None:
        layer, adapter = make(s5, bidir=True), find_adapter(make(s5))
        weight, u = torch.randn(2, 2, 12, 3)

        def gradients() -> dict[str, Tensor]:
            layer.zero_grad()
            (layer(u) * weight).sum().backward()
            return {name: p.grad.clone() for name, p in layer.named_parameters()}

        before = gradients()
        update = adapter.write(layer, rewrite(adapter.read(layer), adapter.form))
        expected = {name: new for m in update.maps for name, new in (m.covectors(before) or {}).items()}
        apply_update(layer, update)
        after = gradients()
        assert set(expected) == {"seq.B", "seq.C"}
        for name, value in expected.items():
            found = after[name].to(value.dtype)
            assert torch.allclose(value, found, rtol=1e-3, atol=1e-4 * float(found.abs().max())), name

    def test_captures_are_those_of_both_directions(self, s5: Any) -> None:
        """From captured inputs and gradients, the gradients of both halves of C and of D."""
        layer = make(s5, bidir=True)
        u, weight = torch.randn(2, 2, 12, 3)
        with Calibration(layer) as calibration:
            (layer(u) * weight).sum().backward()
        capture = calibration.capture("")
        system = find_adapter(layer).read(layer)
        inputs, gradients = capture.inputs[0][0], capture.gradients[0][0]
        states, x = [], torch.zeros(4, system.order, dtype=torch.complex128)
        for step in inputs.unbind(1):
            x = x * system.a + step.to(x.dtype) @ system.b.mT
            states.append(x)
        found = torch.einsum("blp,bln->pn", gradients.to(x.dtype), torch.stack(states, 1).conj())
        wanted = torch.cat(layer.seq.C.grad.chunk(2, 1)).to(found.dtype)
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
        of_d = (gradients[..., :3] * inputs).sum((0, 1))
        assert torch.allclose(of_d, layer.seq.D.grad, rtol=1e-4, atol=1e-4)

    def test_the_layer_changes_by_at_most_twice_what_is_reported(self, s5: Any) -> None:
        layer = make(s5, bidir=True)

        def response() -> Tensor:
            u = torch.zeros(3, 801, 3)
            u[range(3), 400, range(3)] = 1
            with torch.no_grad():
                return torch.fft.fft(layer(u).double(), dim=1).permute(1, 2, 0)

        before = response()
        report = compress_(layer, cut_to(3)).layers[0]
        error = float(torch.linalg.matrix_norm(response() - before, 2).max())
        assert layer.seq.C.shape == (3, 2 * layer.seq.Lambda.shape[0])
        assert 0 < error <= 2 * report.hinf_error * (1 + 1e-3) and report.hinf_error <= report.bound * (1 + 1e-3)

    def test_states_can_be_chosen(self, s5: Any) -> None:
        layer = make(s5, bidir=True)
        poles, c = set(layer.seq.Lambda.tolist()), layer.seq.C.detach().clone()
        compress_(layer, CompressionSettings(FixedOrder(3), reducer=ModalTruncation()))
        assert set(layer.seq.Lambda.tolist()) <= poles
        first, second = layer.seq.C.chunk(2, 1)
        assert all(any(torch.equal(x, y) for y in c[:, :8].T) for x in first.T)
        assert all(any(torch.equal(x, y) for y in c[:, 8:].T) for x in second.T)


def test_a_layer_without_imaginary_parts_is_refused(s5: Any) -> None:
    layer = make(s5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.to(torch.float64)
    with pytest.raises(AdapterError, match=r"S5: Lambda is real \(torch.float64\), wanted complex"):
        compress_(layer, cut_to(3))


def test_the_inner_layer_alone_sees_a_batch_of_one(s5: Any) -> None:
    layer = make(s5).seq
    u = torch.randn(9, 3)
    with Calibration(layer) as calibration:
        layer(u).square().sum().backward()
    capture = calibration.capture("")
    assert torch.equal(capture.inputs[0][0], u[None]) and capture.gradients[0][0].shape == (1, 9, 3)


def test_a_degree_and_a_foreign_rule(s5: Any) -> None:
    layer = make(s5)
    layer.seq.degree = 2
    with pytest.raises(AdapterError, match=r"degree=2 cannot be cut.*adapters=\{S5: None\}"):
        compress_(layer, cut_to(3))
    layer.seq.degree = 1
    layer.seq.discretize = lambda a, b, step: (a, b)
    with pytest.raises(AdapterError, match="discretizes by '<lambda>'; known are discretize_zoh"):
        compress_(layer, cut_to(3))


def test_another_step_scale_is_refused(s5: Any) -> None:
    layer = make(s5)
    with Calibration(layer), pytest.raises(AdapterError, match="called with a step_scale"):
        layer(torch.randn(1, 6, 3), step_scale=2.0)
