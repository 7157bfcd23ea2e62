"""State beside a parameter follows it through a cut, exactly where a map is exact, and never with a wrong shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressm.surgery.operation import operate
from compressm.surgery.optimizer import carry_state
from compressm.surgery.parameters import apply_update
from compressm.surgery.policy import StatePolicy

KEEP = [6, 1, 3]


class TestSelectIsExact:
    def test_training_goes_on_as_if_it_had_been_small_from_the_start(
        self, toy, make_toy, make_select, make, train, assert_same
    ):
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

    def test_untouched_parameters_keep_their_state(self, toy, make_select, make, train, state_of, assert_same):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before, identity = state_of(optimizer, toy.D), id(optimizer.state.get(toy.D))
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert id(optimizer.state.get(toy.D)) == identity
        assert_same(optimizer.state[toy.D], before)

    @pytest.mark.parametrize("first", ["state", "parameters"])
    def test_state_may_be_carried_before_or_after_the_swap(self, toy, make_select, first, optimizers, train):
        optimizer = optimizers["adam"](list(toy.parameters()))
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

    def test_one_of_several_without_state(self, toy, make_select, train):
        """A frozen parameter, or one that another optimizer trains, does not keep its neighbours from their state."""
        toy.inner.weight.requires_grad_(False)
        first, second = torch.optim.Adam([toy.pole, toy.C, toy.D]), torch.optim.SGD([toy.B], 1e-2, momentum=0.9)
        for seed in range(2):
            train(toy, first, 1, seed=seed)
            second.step()
        wanted = {name: first.state[toy.pole][name][KEEP] for name in ("exp_avg", "exp_avg_sq")}
        pulled = second.state[toy.B]["momentum_buffer"][KEEP]
        operation = operate([("toy", toy, make_select(toy, KEEP))], [first, second], StatePolicy.TRANSPORT)
        assert operation.warnings == ()
        assert torch.equal(second.state[toy.B]["momentum_buffer"], pulled) and bool(pulled.any())
        for name, value in wanted.items():
            assert torch.equal(first.state[toy.pole][name], value)

    def test_no_state_yet(self, toy, make_select, make, train):
        optimizer = make(list(toy.parameters()))
        had = set(optimizer.state)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert set(optimizer.state) == had
        assert operation.warnings == ()
        train(toy, optimizer, 2, seed=2)


class TestReset:
    @pytest.mark.parametrize("how", ["map", "policy"])
    def test_moments_and_step_start_anew(
        self, toy, make_toy, make_reset, make_select, make, how, train, state_of, assert_same
    ):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        kept = state_of(optimizer, toy.D)
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

    def test_it_equals_an_optimizer_made_after_the_cut(self, toy, make_select, make, train):
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
    def test_steps_that_are_plain_numbers(self, toy, make_reset, step, optimizers, train):
        optimizer = optimizers["lion"](list(toy.parameters()))
        train(toy, optimizer, 1, seed=1)
        for p in toy.parameters():
            optimizer.state[p]["step"] = step
        operate([("toy", toy, make_reset(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["step"] == 0
        assert type(optimizer.state[toy.B]["step"]) is type(step)
        assert optimizer.state[toy.D]["step"] == 7


class TestSlice:
    def test_leading_entries_and_step_stay(self, toy, make_select, make, train, state_of, assert_same):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before = state_of(optimizer, toy.C)
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.SLICE)
        assert_same(
            optimizer.state[toy.C],
            {k: v[:, :3] if isinstance(v, Tensor) and v.ndim else v for k, v in before.items()},
        )
        train(toy, optimizer, 2, seed=2)

    def test_factored_state_starts_anew(self, toy, make_select, optimizers, train):
        optimizer = optimizers["adafactor"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.SLICE)
        assert any("'B'" in w and "Adafactor" in w for w in operation.warnings)
        assert toy.B not in optimizer.state
        train(toy, optimizer, 2, seed=2)


class TestUnknownState:
    @pytest.mark.parametrize("name", ["adadelta", "asgd", "rprop", "adafactor", "foreign"])
    @pytest.mark.parametrize("policy", StatePolicy)
    def test_it_starts_anew_and_training_goes_on(
        self, toy, make_select, name, policy, optimizers, train, state_of, assert_same
    ):
        optimizer = optimizers[name](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        kept = state_of(optimizer, toy.D)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, policy)
        if policy is StatePolicy.TRANSPORT:
            assert any("'B'" in w and "unknown kind" in w for w in operation.warnings)
        assert_same(optimizer.state[toy.D], kept)
        train(toy, optimizer, 3, seed=2)
        for p in toy.parameters():
            assert torch.isfinite(p).all()
            assert all(not v.is_floating_point() or v.ndim == 0 or v.ndim == p.ndim
                       for v in optimizer.state[p].values() if isinstance(v, Tensor))  # fmt: skip

    def test_the_warning_names_the_state(self, toy, make_select, optimizers, train):
        optimizer = optimizers["foreign"](list(toy.parameters()))
        train(toy, optimizer, 1, seed=1)
        operation = operate([("ssm", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert any("'ssm'" in w and "'mystery'" in w for w in operation.warnings)

    @pytest.mark.parametrize("value", [{"nested": torch.zeros(8, 3)}, [torch.zeros(8, 3)], torch.zeros(8, 3).byte()])
    def test_nested_listed_and_quantised_state_is_dropped(self, toy, make_select, value, optimizers, train):
        optimizer = optimizers["lion"](list(toy.parameters()))
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
