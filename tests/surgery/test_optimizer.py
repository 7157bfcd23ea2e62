"""State beside a parameter follows it through a cut, exactly where a map is exact, and never with a wrong shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.adapters.update import LayerUpdate, Pullback, Reset, Select
from compressm.errors import SurgeryError
from compressm.surgery.operation import operate
from compressm.surgery.optimizer import carry_state, prepare_state
from compressm.surgery.parameters import apply_update
from compressm.surgery.policy import StatePolicy

KEEP = [6, 1, 3]


class Lion(Optimizer):
    """Sign of an interpolated gradient (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                p.add_((0.9 * state["exp_avg"] + 0.1 * p.grad).sign(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 0.01)


class Foreign(Lion):
    """Keeps a tensor of a kind that nobody knows."""

    key = "mystery"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        super().step()
        for p in self.state:
            self.state[p].setdefault(self.key, torch.zeros_like(p))


Make = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "adamw capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), foreach=False),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, fused=True),
    "lion": lambda p: Lion(p, lr=0.05),
}
LAZY: dict[str, Make] = {
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "foreign": lambda p: Foreign(p),
}


@pytest.fixture(params=OPTIMIZERS, ids=str)
def make(request) -> Make:
    return OPTIMIZERS[request.param]


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def snapshot(optimizer: Optimizer, parameter: Tensor) -> dict[str, object]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[parameter].items()}


def assert_same(entry: dict[str, object], other: dict[str, object]) -> None:
    assert entry.keys() == other.keys()
    for key, value in entry.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


class TestSelectIsExact:
    def test_training_goes_on_as_if_it_had_been_small_from_the_start(self, toy, make_toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        small = make_toy(3)
        twin = make(list(small.parameters()))
        train(small, twin, 1, seed=9)  # only to have state of the right form
        index = torch.tensor(KEEP)
        with torch.no_grad():
            small.scale.copy_(toy.scale[KEEP])
            small.plain.copy_(toy.plain[KEEP])
            for (name, p), q in zip(toy.named_parameters(), small.parameters(), strict=True):
                dim = 1 if name == "C" else 0
                q.copy_(p if name == "D" else p.index_select(dim, index))
                for key, value in optimizer.state[p].items():
                    if isinstance(value, Tensor) and value.ndim > 0 and name != "D":
                        value = value.index_select(dim, index)
                    twin.state[q][key] = value.clone() if isinstance(value, Tensor) else value

        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert operation.warnings == ()
        train(toy, optimizer, 5, seed=2)
        train(small, twin, 5, seed=2)
        for (name, p), q in zip(toy.named_parameters(), small.parameters(), strict=True):
            assert torch.equal(p, q), name
            assert_same(optimizer.state[p], twin.state[q])

    def test_untouched_parameters_keep_their_state(self, toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before, identity = snapshot(optimizer, toy.D), id(optimizer.state.get(toy.D))
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert id(optimizer.state.get(toy.D)) == identity
        assert_same(optimizer.state[toy.D], before)

    @pytest.mark.parametrize("first", ["state", "parameters"])
    def test_state_may_be_carried_before_or_after_the_swap(self, toy, make_select, first):
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        wanted = optimizer.state[toy.C]["exp_avg_sq"][:, KEEP]
        update = make_select(toy, KEEP)
        if first == "parameters":
            apply_update(toy, update)
        assert carry_state(optimizer, [(toy, update)], StatePolicy.TRANSPORT) == []
        if first == "state":
            apply_update(toy, update)
        assert torch.equal(optimizer.state[toy.C]["exp_avg_sq"], wanted)
        train(toy, optimizer, 2, seed=2)

    def test_no_state_yet(self, toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        had = set(optimizer.state)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert set(optimizer.state) == had
        assert operation.warnings == ()
        train(toy, optimizer, 2, seed=2)


def embed(layer: nn.Module, v: Tensor, names: tuple[str, ...] = ("B", "inner.weight")) -> LayerUpdate:
    """New rows B' with B ~ V B': gradients follow as V^T g, uncorrelated second moments as (V^2)^T s."""
    parameters = dict(layer.named_parameters())
    small = v.shape[1]
    tensors = {n: (torch.linalg.pinv(v) @ parameters[n].detach().double()).float() for n in names}
    tensors |= {"pole": layer.pole.detach()[:small], "C": layer.C.detach()[:, :small]}
    tensors |= {"scale": layer.scale[:small], "plain": layer.plain[:small]}
    covectors = Pullback(
        names,
        lambda old: {n: v.mT @ old[n] for n in names},
        lambda old: {n: v.square().mT @ old[n] for n in names},
    )
    return LayerUpdate(small, tensors, {"size": small}, (covectors, Reset(("pole", "C"))))


class TestPullback:
    V = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def test_moments_follow_jointly(self, toy):
        optimizer = OPTIMIZERS["amsgrad"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        calls = []
        update = embed(toy, self.V)
        first = update.maps[0]
        counted = replace(first, covector_map=lambda old: calls.append(set(old)) or first.covector_map(old))
        before = snapshot(optimizer, toy.B)
        operate([("t", toy, replace(update, maps=(counted, update.maps[1])))], optimizer, StatePolicy.TRANSPORT)
        after = optimizer.state[toy.B]
        assert calls == [{"B", "inner.weight"}]
        assert after["exp_avg"].dtype is torch.float32
        torch.testing.assert_close(after["exp_avg"], (self.V.mT @ before["exp_avg"].double()).float())
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            torch.testing.assert_close(after[key], (self.V.square().mT @ before[key].double()).float())
        assert after["step"] == 3

    def test_a_gradient_average_follows_as_the_gradient(self):
        layer = nn.Module()
        layer.B = nn.Parameter(torch.randn(8, 3))
        v = self.V.float()
        weight = torch.randn(8, 3)
        optimizer = torch.optim.SGD([layer.B], lr=0.0, momentum=0.5)
        (layer.B * weight).sum().backward()
        optimizer.step()
        small = torch.linalg.pinv(v) @ layer.B.detach()
        maps = (Pullback(("B",), lambda o: {"B": self.V.mT @ o["B"]}, lambda o: {"B": self.V.square().mT @ o["B"]}),)
        operate([("x", layer, LayerUpdate(3, {"B": small}, maps=maps))], optimizer, StatePolicy.TRANSPORT)
        ((v @ layer.B) * weight).sum().backward()
        torch.testing.assert_close(optimizer.state[layer.B]["momentum_buffer"], layer.B.grad)

    def test_the_root_of_a_second_moment(self, toy):
        optimizer = OPTIMIZERS["adamax"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before = snapshot(optimizer, toy.B)["exp_inf"].double()
        operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        wanted = (self.V.square().mT @ before.square()).sqrt().float()
        torch.testing.assert_close(optimizer.state[toy.B]["exp_inf"], wanted)

    def test_centred_second_moments_stay_above_the_squared_mean(self, toy):
        optimizer = OPTIMIZERS["rmsprop centered"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        for p in toy.parameters():  # a constant gradient: no spread at all
            entry = optimizer.state[p]
            entry["grad_avg"].fill_(0.7)
            entry["square_avg"].copy_(entry["grad_avg"].square())
        operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        train(toy, optimizer, 3, seed=2)
        assert all(torch.isfinite(p).all() for p in toy.parameters())

    def test_a_normalised_average_does_not_depend_on_the_scale_of_the_new_basis(self, toy, make_toy):
        buffers = []
        for factor in (1.0, 1e-3):
            torch.manual_seed(3)
            model = make_toy()
            optimizer = torch.optim.RMSprop(model.parameters(), lr=0.05, momentum=0.9, eps=1e-30)
            train(model, optimizer, 3, seed=1)
            operate([("toy", model, embed(model, factor * self.V))], optimizer, StatePolicy.TRANSPORT)
            buffers.append(optimizer.state[model.B]["momentum_buffer"])
        torch.testing.assert_close(buffers[0], buffers[1])

    def test_one_member_without_state_restarts_the_others(self, toy):
        toy.inner.weight.requires_grad_(False)
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        operation = operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        assert any("'B'" in w and "'inner.weight' has none" in w for w in operation.warnings)
        assert optimizer.state[toy.B]["exp_avg"].eq(0).all()
        assert optimizer.state[toy.B]["step"] == 0
        assert toy.inner.weight not in optimizer.state

    def test_members_may_belong_to_several_optimizers(self, toy):
        pair = [OPTIMIZERS["adam"]([toy.B]), OPTIMIZERS["adam"]([toy.inner.weight, toy.pole, toy.C, toy.D])]
        for _ in range(2):
            toy(torch.randn(6, 3)).square().mean().backward()
            for optimizer in pair:
                optimizer.step()
        before = snapshot(pair[0], toy.B)["exp_avg"].double()
        operation = operate([("toy", toy, embed(toy, self.V))], pair, StatePolicy.TRANSPORT)
        assert operation.warnings == ()
        torch.testing.assert_close(pair[0].state[toy.B]["exp_avg"], (self.V.mT @ before).float())

    def test_different_kinds_of_optimizers_restart(self, toy):
        pair = [OPTIMIZERS["lion"]([toy.B]), OPTIMIZERS["adam"]([toy.inner.weight, toy.pole, toy.C, toy.D])]
        toy(torch.randn(6, 3)).square().mean().backward()
        for optimizer in pair:
            optimizer.step()
        operation = operate([("toy", toy, embed(toy, self.V))], pair, StatePolicy.TRANSPORT)
        assert any("different moments" in w for w in operation.warnings)
        assert pair[0].state[toy.B]["exp_avg"].eq(0).all()

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda old: dict(old.items()), r"returns \(8, 3\); wanted shape \(3, 3\)"),
            (lambda old: {}, "returns nothing"),
            (lambda old: {n: -t[:3] for n, t in old.items()}, "negative second moment"),
        ],
    )
    def test_a_map_that_does_not_fit_changes_nothing(self, toy, result, message):
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = {p: snapshot(optimizer, p) for p in toy.parameters()}
        update = embed(toy, self.V)
        bad = replace(update.maps[0], variance_map=result)
        with pytest.raises(SurgeryError, match=message):
            operate([("toy", toy, replace(update, maps=(update.maps[1], bad)))], optimizer, StatePolicy.TRANSPORT)
        assert toy.B.shape == (8, 3)
        for p, entry in before.items():
            assert_same(optimizer.state[p], entry)


class TestReset:
    @pytest.mark.parametrize("how", ["map", "policy"])
    def test_moments_and_step_start_anew(self, toy, make_toy, make_reset, make_select, make, how):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        kept = snapshot(optimizer, toy.D)
        update = make_reset(toy, KEEP) if how == "map" else make_select(toy, KEEP)
        policy = StatePolicy.TRANSPORT if how == "map" else StatePolicy.RESET
        assert operate([("toy", toy, update)], optimizer, policy).warnings == ()
        for p in (toy.pole, toy.B, toy.C, toy.inner.weight):
            start = float(optimizer.param_groups[0].get("initial_accumulator_value", 0))
            for key, value in optimizer.state[p].items():
                wanted = {"mu_product": 1.0, "sum": start}.get(key, 0.0)
                assert value is None or bool((torch.as_tensor(value) == wanted).all()), key
                assert not isinstance(value, Tensor) or value.shape in ((), p.shape)
        assert_same(optimizer.state[toy.D], kept)
        train(toy, optimizer, 3, seed=2)
        assert all(torch.isfinite(p).all() for p in toy.parameters())

    def test_it_equals_an_optimizer_made_after_the_cut(self, toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        optimizer.state.pop(toy.D, None)
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.RESET)
        toy.D.requires_grad_(False)  # its state does not start anew
        start = {name: p.detach().clone() for name, p in toy.named_parameters()}
        optimizer.zero_grad()
        train(toy, optimizer, 3, seed=2)
        ended = {name: p.detach().clone() for name, p in toy.named_parameters()}
        with torch.no_grad():
            for name, p in toy.named_parameters():
                p.copy_(start[name])
        train(toy, make([p for p in toy.parameters() if p.requires_grad]), 3, seed=2)
        for name, p in toy.named_parameters():
            torch.testing.assert_close(p.detach(), ended[name], rtol=0, atol=0, msg=name)

    @pytest.mark.parametrize("step", [7, 7.0])
    def test_steps_that_are_plain_numbers(self, toy, make_reset, step):
        optimizer = OPTIMIZERS["lion"](list(toy.parameters()))
        train(toy, optimizer, 1, seed=1)
        for p in toy.parameters():
            optimizer.state[p]["step"] = step
        operate([("toy", toy, make_reset(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["step"] == 0
        assert type(optimizer.state[toy.B]["step"]) is type(step)
        assert optimizer.state[toy.D]["step"] == 7

    def test_a_map_with_first_moments_only_resets_the_whole_parameter(self, toy):
        class FirstOnly(Pullback):
            def variances(self, old):
                return None

        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        update = embed(toy, TestPullback.V)
        joint = update.maps[0]
        half = FirstOnly(joint.names, joint.covector_map, joint.variance_map)
        operate([("toy", toy, replace(update, maps=(half, update.maps[1])))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["exp_avg"].eq(0).all()
        assert optimizer.state[toy.B]["step"] == 0


class TestSlice:
    def test_leading_entries_and_step_stay(self, toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before = snapshot(optimizer, toy.C)
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.SLICE)
        assert_same(
            optimizer.state[toy.C],
            {k: v[:, :3] if isinstance(v, Tensor) and v.ndim else v for k, v in before.items()},
        )
        train(toy, optimizer, 2, seed=2)

    def test_factored_state_starts_anew(self, toy, make_select):
        optimizer = LAZY["adafactor"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.SLICE)
        assert any("'B'" in w and "Adafactor" in w for w in operation.warnings)
        assert toy.B not in optimizer.state
        train(toy, optimizer, 2, seed=2)


class TestUnknownState:
    @pytest.mark.parametrize("name", LAZY)
    @pytest.mark.parametrize("policy", StatePolicy)
    def test_it_starts_anew_and_training_goes_on(self, toy, make_select, name, policy):
        optimizer = LAZY[name](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        kept = snapshot(optimizer, toy.D)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, policy)
        if policy is StatePolicy.TRANSPORT:
            assert any("'B'" in w and "unknown kind" in w for w in operation.warnings)
        assert_same(optimizer.state[toy.D], kept)
        train(toy, optimizer, 3, seed=2)
        for p in toy.parameters():
            assert torch.isfinite(p).all()
            assert all(not v.is_floating_point() or v.ndim == 0 or v.ndim == p.ndim
                       for v in optimizer.state[p].values() if isinstance(v, Tensor))  # fmt: skip

    def test_the_warning_names_the_state(self, toy, make_select):
        optimizer = LAZY["foreign"](list(toy.parameters()))
        train(toy, optimizer, 1, seed=1)
        operation = operate([("ssm", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert any("'ssm'" in w and "'mystery'" in w for w in operation.warnings)

    @pytest.mark.parametrize("value", [{"nested": torch.zeros(8, 3)}, [torch.zeros(8, 3)], torch.zeros(8, 3).byte()])
    def test_nested_listed_and_quantised_state_is_dropped(self, toy, make_select, value):
        optimizer = OPTIMIZERS["lion"](list(toy.parameters()))
        train(toy, optimizer, 1, seed=1)
        optimizer.state[toy.B]["odd"] = value
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert toy.B not in optimizer.state
        assert any("'odd'" in w for w in operation.warnings)

    def test_lbfgs_starts_anew_as_a_whole(self, toy, make_select):
        optimizer = torch.optim.LBFGS(toy.parameters())
        data = torch.randn(6, 3)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = toy(data).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert any("LBFGS" in w for w in operation.warnings)
        optimizer.step(closure)
        assert torch.isfinite(closure())
        operation.undo.undo()
        optimizer.step(closure)


class TestOperation:
    def test_groups_and_schedule_go_on(self, toy, make_select):
        optimizer = torch.optim.AdamW([{"params": [toy.pole], "lr": 0.1}, {"params": [toy.B, toy.C, toy.D]}], lr=0.2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=20)
        reference = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        other = torch.optim.AdamW([{"params": [p], "lr": 0.1} for p in reference], lr=0.2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(other, max_lr=[0.1, 0.2], total_steps=20)
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        for step in range(10):
            for p in reference:
                p.grad = torch.zeros(1)
            other.step()
            schedule.step()
            train(toy, optimizer, 1, seed=step)
            scheduler.step()
            if step == 4:
                held = [id(g) for g in optimizer.param_groups]
                operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
                assert [id(g) for g in optimizer.param_groups] == held
        assert scheduler.get_last_lr() == schedule.get_last_lr()
        assert [g.keys() - {"params"} for g in optimizer.param_groups] == [g.keys() for g in groups]

    def test_undo_restores_state_bit_for_bit(self, toy, make_select, make):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        held = {p: (id(optimizer.state[p]), snapshot(optimizer, p)) for p in list(optimizer.state)}
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.RESET)
        operation.undo.undo()
        assert set(optimizer.state) == set(held)
        for p, (identity, entry) in held.items():
            assert id(optimizer.state[p]) == identity
            assert_same(optimizer.state[p], entry)
        train(toy, optimizer, 2, seed=2)

    def test_preparing_changes_nothing(self, toy, make_select):
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = snapshot(optimizer, toy.B)
        prepare_state(optimizer, [("toy", toy, make_select(toy, KEEP))], StatePolicy.TRANSPORT)
        assert_same(optimizer.state[toy.B], before)

    def test_a_failing_swap_leaves_the_state(self, toy, make_select):
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = snapshot(optimizer, toy.B)
        update = make_select(toy, KEEP)
        with pytest.raises(SurgeryError):
            operate([("toy", toy, replace(update, attributes={"none": 0}))], optimizer, StatePolicy.TRANSPORT)
        assert_same(optimizer.state[toy.B], before)

    def test_a_parameter_of_no_given_optimizer_is_named(self, toy, make_select):
        optimizer = OPTIMIZERS["adam"]([toy.pole, toy.C, toy.D, toy.inner.weight])
        train(toy, optimizer, 1, seed=1)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert any("'B' belongs to no given optimizer" in w for w in operation.warnings)

    def test_without_an_optimizer(self, toy, make_select):
        assert operate([("toy", toy, make_select(toy, KEEP))], None, StatePolicy.TRANSPORT).warnings == ()
        assert toy.B.shape == (3, 3)

    def test_a_tied_parameter_is_carried_once(self, toy, make_toy, make_select):
        other = make_toy()
        other.B = toy.B
        optimizer = OPTIMIZERS["adam"](list(nn.ModuleList([toy, other]).parameters()))
        (toy(torch.randn(4, 3)) + other(torch.randn(4, 3))).square().sum().backward()
        optimizer.step()
        wanted = optimizer.state[toy.B]["exp_avg"][KEEP].clone()
        items = [("a", toy, make_select(toy, KEEP)), ("b", other, make_select(other, KEEP))]
        operate(items, optimizer, StatePolicy.TRANSPORT)
        assert torch.equal(optimizer.state[toy.B]["exp_avg"], wanted)
        assert all(optimizer.state[p]["exp_avg_sq"].shape == p.shape for p in optimizer.state)

    def test_narrow_state_keeps_its_dtype(self, toy, make_select):
        toy.bfloat16()
        optimizer = OPTIMIZERS["adam"](list(toy.parameters()))
        for p in toy.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        wanted = optimizer.state[toy.B]["exp_avg"][KEEP].clone()
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["exp_avg"].dtype is torch.bfloat16
        assert torch.equal(optimizer.state[toy.B]["exp_avg"], wanted)

    def test_selects_of_both_dimensions(self):
        assert Select(("C",), torch.tensor([1]), 1).covectors({"C": torch.eye(2)})["C"].tolist() == [[0.0], [1.0]]
