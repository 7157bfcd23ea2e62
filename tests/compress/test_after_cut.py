"""Life after a cut: gradients, streaming, the optimizer's direction, and what a trained layer can lose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.calibration import Calibration
from compressm.adapters.lru import LRUAdapter
from compressm.compress import compress_
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.linalg.forms import Frame
from compressm.linalg.hankel import hankel_singular_values
from compressm.reduction.criteria import Criterion, FixedOrder, HankelEnergy
from compressm.settings import Balancing, CompressionSettings
from compressm.surgery.policy import StatePolicy

KINDS = [LRU, DenseSSM]


def batch(width: int = 3, seed: int = 0, cases: int = 8, length: int = 40) -> Tensor:
    return torch.randn(cases, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(model: nn.Module, u: Tensor) -> Tensor:
    target = torch.roll(u.cumsum(1).tanh(), 1, -1)
    return (model(u) - target).square().mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("balancing", list(Balancing))
@pytest.mark.parametrize("order", [1, 2, 5, 9])
def test_every_state_of_a_cut_layer_can_learn(
    kind: type[nn.Module], balancing: Balancing, order: int, make: Any, white: Any
) -> None:
    real_poles = 0
    for seed in range(4):
        layer = make(kind, seed=seed)
        compress_(nn.Sequential(layer), white(FixedOrder(order), balancing=balancing))
        loss_of(layer, batch()).backward()
        for name, p in layer.named_parameters():
            assert bool(p.grad.isfinite().all()), name
            by_state = p.grad if name.startswith("C") else p.grad.mT if p.grad.ndim > 1 else p.grad[None]
            size = by_state.abs().amax(0)
            assert name == "D" or bool((size > 1e-9 * size.max()).all()), (name, size)
        if kind is LRU:
            angle = layer.theta_log.detach().exp()
            real_poles += int(((angle - torch.pi).abs() < 1e-9).sum() + ((angle - 2 * torch.pi).abs() < 1e-9).sum())
    assert kind is DenseSSM or balancing is Balancing.COMPLEX or order != 5 or real_poles > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_steps_agree_with_the_forward_pass(kind: type[nn.Module], dtype: torch.dtype, make: Any, white: Any) -> None:
    layer = make(kind, r_min=0.9, r_max=0.999, order=32).to(dtype)
    u = batch(length=200).to(dtype)
    for order in (32, 9, 4):
        compress_(nn.Sequential(layer), white(FixedOrder(order)))
        state, outputs = layer.initial_state(len(u)), []
        with torch.no_grad():
            for v in u.unbind(1):
                y, state = layer.step(v, state)
                outputs.append(y)
            wanted = layer(u)
        assert layer.order == order
        assert float((torch.stack(outputs, 1) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def direction(layer: nn.Module, values: dict[str, Tensor]) -> Tensor:
    """The entries of what has a map, as one vector."""
    names = ("gamma_log", "B_re", "B_im", "C_re", "C_im") if isinstance(layer, LRU) else ("A", "B", "C")
    return torch.cat([values[name].flatten() for name in names])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("balancing", list(Balancing))
@pytest.mark.parametrize("optimizer_kind", ["SGD", "Adam"])
def test_the_first_moment_points_where_the_reduced_gradient_does(
    kind: type[nn.Module], balancing: Balancing, optimizer_kind: str, make: Any, white: Any
) -> None:
    def cosine(policy: StatePolicy, seed: int) -> float:
        layer, u = make(kind, order=24, seed=seed), batch()
        if optimizer_kind == "SGD":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
        else:
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.0)
        key = "momentum_buffer" if optimizer_kind == "SGD" else "exp_avg"
        loss_of(layer, u).backward()
        optimizer.step()
        settings = white(HankelEnergy(0.02), balancing=balancing, optimizer_policy=policy)
        report = compress_(nn.Sequential(layer), settings, optimizer=optimizer)
        assert report.changed and report.warnings == ()
        assert all(p.grad is None or p.grad.shape == p.shape for p in layer.parameters())
        optimizer.zero_grad()
        loss_of(layer, u).backward()
        carried = direction(layer, {name: optimizer.state[p][key] for name, p in layer.named_parameters()})
        wanted = direction(layer, {name: p.grad for name, p in layer.named_parameters()})
        return float(carried @ wanted / (carried.norm() * wanted.norm()))

    transported = [cosine(StatePolicy.TRANSPORT, seed) for seed in range(4)]
    sliced = [abs(cosine(StatePolicy.SLICE, seed)) for seed in range(4)]
    assert min(transported) > 0.9, transported
    assert sum(sliced) / len(sliced) < 0.2 if kind is LRU else sum(sliced) < sum(transported) / 2, sliced


@pytest.mark.parametrize("kind", KINDS)
def test_the_carried_gradient_has_the_right_size_without_error(kind: type[nn.Module], make: Any, white: Any) -> None:
    # Removing what is unobservable changes nothing, so the gradient transported is the gradient itself.
    layer, u = make(kind, order=12), batch()
    with torch.no_grad():
        if kind is LRU:
            layer.C_re[:, 6:] = layer.C_im[:, 6:] = 0
        else:
            layer.A[:6, 6:] = layer.A[6:, :6] = 0
            layer.C[:, 6:] = 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    loss_of(layer, u).backward()
    optimizer.step()
    assert compress_(nn.Sequential(layer), white(HankelEnergy(0.0)), optimizer=optimizer).orders() == {"0": 6}
    optimizer.zero_grad()
    loss_of(layer, u).backward()
    carried = direction(layer, {n: optimizer.state[p]["momentum_buffer"] for n, p in layer.named_parameters()})
    wanted = direction(layer, {n: p.grad for n, p in layer.named_parameters()})
    assert float((carried - wanted).norm()) < 1e-6 * float(wanted.norm())


def test_untouched_parameters_keep_their_state(make: Any) -> None:
    model = nn.Sequential(make(), nn.Linear(3, 3, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model, batch(seed=seed)).backward()
        optimizer.step()
    kept = [model[0].D, *model[1].parameters()]
    before = [{k: (v, v.clone()) for k, v in optimizer.state[p].items()} for p in kept]
    compress_(model, CompressionSettings(FixedOrder(5)), optimizer=optimizer)
    for p, old in zip(kept, before, strict=True):
        assert all(optimizer.state[p][k] is v and torch.equal(v, copy) for k, (v, copy) in old.items())
    assert float(optimizer.state[model[0].B_re]["step"]) == 3 and float(optimizer.state[model[0].nu_log]["step"]) == 0
    loss_of(model, batch()).backward()
    optimizer.step()


def student_of(teacher: LRU, kind: type[LRU | DenseSSM], seed: int) -> tuple[Any, Tensor, Tensor, Calibration]:
    """A layer of order 16 trained on the noisy outputs of a teacher, with a validation set."""
    torch.manual_seed(seed)
    student = kind(2, 16, r_min=0.5, r_max=0.95)
    model = nn.Sequential(student)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    calibration = Calibration(model)

    def pairs(cases: int) -> tuple[Tensor, Tensor]:
        u = torch.randn(cases, 48, 2)
        with torch.no_grad():
            y: Tensor = teacher(u)
        return u, y + 0.1 * torch.randn(y.shape)

    for step in range(300):
        if step == 298:
            calibration.start()
        u, y = pairs(16)
        optimizer.zero_grad()
        (model(u) - y).square().mean().backward()
        optimizer.step()
        scheduler.step()
    calibration.stop()
    return model, *pairs(400), calibration


@pytest.mark.parametrize(
    ("kind", "seed", "energy"), [(LRU, 0, 0.03), (LRU, 1, 0.03), (DenseSSM, 1, 0.02), (DenseSSM, 2, 0.02)]
)
def test_a_student_is_cut_to_its_teachers_order(kind: type[LRU | DenseSSM], seed: int, energy: float) -> None:
    k = 4
    teacher = LRU(2, k, r_min=0.7, r_max=0.95, generator=torch.Generator().manual_seed(seed))
    states = k if kind is LRU else 2 * k  # a dense layer stores real states
    values = hankel_singular_values(LRUAdapter().read(teacher), Frame.REAL)
    assert len(values) == 2 * k and float(values[-1]) > 0.02 * float(values[0])
    model, u, y, calibration = student_of(teacher, kind, seed)

    def loss_after(criterion: Criterion) -> tuple[float, int]:
        saved = {name: p.detach().clone() for name, p in model.named_parameters()}
        report = compress_(model, CompressionSettings(criterion), calibration=calibration).layers[0]
        assert (report.controllability, report.observability) == ("data", "loss")
        with torch.no_grad():
            loss = float((model(u) - y).square().mean())
            for name, p in model.named_parameters():
                p.set_(saved[name])
        return loss, report.order_after

    before, order = loss_after(FixedOrder(16))
    assert before < 0.02 and order == 16  # the noise alone is 0.01
    for criterion in (HankelEnergy(energy), FixedOrder(states + 2)):
        loss, order = loss_after(criterion)
        assert order <= states + 2 and loss < 1.05 * before, criterion
    loss, order = loss_after(FixedOrder(states // 2))
    assert loss > 1.2 * before  # there was something to lose
