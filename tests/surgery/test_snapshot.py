"""Going back restores everything: what follows equals, bit for bit, what would have followed."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressm.errors import SurgeryError
from compressm.surgery.operation import operate
from compressm.surgery.policy import StatePolicy
from compressm.surgery.snapshot import Snapshot

KEEP = [6, 1, 3]


class Run:
    """A training run with dropout, batch norm statistics, noise of three generators, a schedule and a scaler."""

    def __init__(self, layer: nn.Module, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.layer = layer
        self.model = nn.Sequential(nn.BatchNorm1d(3), layer, nn.Dropout(0.3), nn.Linear(2, 1))
        self.optimizer = make(list(self.model.parameters()))
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=0.002, total_steps=40, cycle_momentum=True
        )
        self.losses: list[float] = []

    def train(self, steps: int, first: int) -> None:
        for step in range(first, first + steps):
            data = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
            data = data + 0.1 * random.random() + 0.1 * float(np.random.randn())
            self.optimizer.zero_grad()
            loss = self.model(data).square().mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(loss.item())

    def take(self) -> Snapshot:
        return Snapshot.take(self.model, self.optimizer, self.scheduler)

    def everything(self) -> dict[str, Tensor]:
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        for index, p in enumerate(self.model.parameters()):
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"{index}.{key}"] = torch.as_tensor(value).clone()
        return state | {"lr": torch.tensor(self.scheduler.get_last_lr()), "plain": self.layer.plain.clone()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.05), foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
}


@pytest.fixture(params=OPTIMIZERS)
def run(request, toy) -> Run:
    random.seed(1)
    np.random.seed(2)
    return Run(toy, OPTIMIZERS[request.param])


@pytest.mark.parametrize("policy", StatePolicy)
@pytest.mark.parametrize("warm", [0, 4])
def test_training_after_a_rollback_equals_training_without_the_cut(run, make_select, policy, warm):
    run.train(warm, first=0)
    snapshot = run.take()
    run.train(5, first=100)
    wanted, losses = run.everything(), run.losses[warm:]
    snapshot.restore()
    operate([("toy", run.layer, make_select(run.layer, KEEP))], run.optimizer, policy)
    run.train(3, first=200)
    run.losses.clear()
    snapshot.restore()
    run.train(5, first=100)
    assert run.losses == losses
    assert_equal(run.everything(), wanted)


@pytest.mark.parametrize("run", ["adam"], indirect=True)
class TestEverythingComesBack:
    def test_objects_stay_the_same(self, run, make_select):
        run.train(2, first=0)
        held = {name: id(p) for name, p in run.model.named_parameters()}
        groups = [id(g) for g in run.optimizer.param_groups]
        snapshot = run.take()
        operate([("toy", run.layer, make_select(run.layer, KEEP))], run.optimizer, StatePolicy.RESET)
        snapshot.restore()
        assert {name: id(p) for name, p in run.model.named_parameters()} == held
        assert [id(g) for g in run.optimizer.param_groups] == groups
        assert run.layer.size == 8
        assert run.layer.plain.tolist() == list(map(float, range(8)))

    def test_gradients(self, run):
        run.train(1, first=0)
        wanted = {n: p.grad.clone() for n, p in run.model.named_parameters()}
        snapshot = run.take()
        run.optimizer.zero_grad(set_to_none=False)
        snapshot.restore()
        for name, p in run.model.named_parameters():
            assert torch.equal(p.grad, wanted[name])

    def test_memory_is_kept_where_shapes_are(self, run):
        pointer = run.model[3].weight.data_ptr()
        snapshot = run.take()
        run.train(1, first=0)
        snapshot.restore()
        assert run.model[3].weight.data_ptr() == pointer

    def test_state_made_or_removed_since(self, run):
        snapshot = run.take()
        run.train(1, first=0)
        snapshot.restore()
        assert len(run.optimizer.state) == 0
        run.train(1, first=0)
        snapshot = run.take()
        wanted = run.everything()
        run.optimizer.state.clear()
        run.optimizer.param_groups[0]["lr"] = 17.0
        run.optimizer.param_groups[0]["new"] = 1
        snapshot.restore()
        assert_equal(run.everything(), wanted)
        assert "new" not in run.optimizer.param_groups[0]
        assert run.optimizer.param_groups[0]["lr"] == run.scheduler.get_last_lr()[0]

    def test_replaced_buffers_new_buffers_and_new_attributes(self, run):
        norm = run.model[0]
        held = norm.running_mean
        snapshot = run.take()
        norm.running_mean = torch.full((3,), 9.0)
        norm.register_buffer("cache", torch.ones(1), persistent=False)
        run.layer.cached_length = 12
        snapshot.restore()
        assert norm.running_mean is held
        assert torch.equal(held, torch.zeros(3))
        assert "cache" not in dict(norm.named_buffers())
        assert not hasattr(run.layer, "cached_length")

    def test_modes_and_hooks_are_left_alone(self, run):
        snapshot = run.take()
        seen = []
        handle = run.layer.register_full_backward_hook(lambda *_: seen.append(1))
        run.model.eval()
        snapshot.restore()
        assert not run.model.training
        run.model(torch.randn(4, 3)).sum().backward()
        assert seen == [1]
        handle.remove()

    def test_requires_grad(self, run):
        snapshot = run.take()
        run.layer.B.requires_grad_(False)
        snapshot.restore()
        assert run.layer.B.requires_grad

    def test_tied_parameters(self, run, toy, make_select):
        run.model.register_module("again", nn.Module())
        run.model.again.mirror = toy.B
        snapshot = run.take()
        operate([("toy", toy, make_select(toy, KEEP))], run.optimizer, StatePolicy.TRANSPORT)
        snapshot.restore()
        assert run.model.again.mirror is toy.B
        assert toy.B.shape == (8, 3)

    def test_the_snapshot_outlives_later_training(self, run, make_select):
        run.train(1, first=0)
        wanted, snapshot = run.everything(), run.take()
        for _ in range(2):
            operate([("toy", run.layer, make_select(run.layer, KEEP))], run.optimizer, StatePolicy.RESET)
            run.train(2, first=5)
            snapshot.restore()
            assert_equal(run.everything(), wanted)

    def test_random_numbers(self, run):
        snapshot = run.take()

        def draw() -> tuple[float, float, float]:
            return torch.rand(1).item(), float(np.random.rand()), random.random()

        random.gauss(0, 1)
        first = draw()
        snapshot.restore()
        random.gauss(0, 1)
        assert draw() == first

    def test_further_objects(self, run):
        class Counter:
            value = 3

            def state_dict(self):
                return {"value": [self.value]}

            def load_state_dict(self, state):
                (self.value,) = state.pop("value")

        counter = Counter()
        snapshot = Snapshot.take(run.model, run.optimizer, [run.scheduler], extra=[counter])
        for _ in range(2):
            counter.value = 5
            snapshot.restore()
            assert counter.value == 3

    def test_a_changed_dtype_is_refused_before_anything_changes(self, run):
        snapshot = run.take()
        run.layer.D.data = run.layer.D.data.double()
        run.layer.pole.data.fill_(7.0)
        with pytest.raises(SurgeryError, match=r"'1.D' is torch.float64"):
            snapshot.restore()
        assert run.layer.pole.eq(7).all()


@pytest.mark.parametrize("run", ["adam", "adam tensor lr"], indirect=True)
class TestStateDict:
    def test_a_snapshot_from_its_description_restores_a_cut_model_of_another_process(self, run, make_toy, make_select):
        run.train(2, first=0)
        snapshot = run.take()
        described = snapshot.state_dict()
        run.train(3, first=10)
        wanted = run.everything()

        other = Run(make_toy(), type(run.optimizer))
        other.train(1, first=50)
        operate([("toy", other.layer, make_select(other.layer, KEEP))], other.optimizer, StatePolicy.RESET)
        Snapshot.from_state_dict(described, other.model, other.optimizer, other.scheduler).restore()
        other.train(3, first=10)
        assert_equal(other.everything(), wanted)

    def test_other_models_and_optimizers_are_refused(self, run):
        described = run.take().state_dict()
        bigger = nn.Sequential(*run.model, nn.Linear(1, 1))
        with pytest.raises(SurgeryError, match=r"lacks 4.bias, 4.weight"):
            Snapshot.from_state_dict(described, bigger, run.optimizer, run.scheduler)
        fewer = torch.optim.Adam(run.layer.parameters())
        with pytest.raises(SurgeryError, match="groups have"):
            Snapshot.from_state_dict(described, run.model, fewer, run.scheduler)
        with pytest.raises(SurgeryError, match="has 1 optimizers, 0 are given"):
            Snapshot.from_state_dict(described, run.model, (), run.scheduler)
