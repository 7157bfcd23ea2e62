"""A cut changes parameters and optimizer state together, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressm.errors import SurgeryError
from compressm.surgery.operation import operate
from compressm.surgery.optimizer import prepare_state
from compressm.surgery.policy import StatePolicy

KEEP = [6, 1, 3]


class TestOperation:
    def test_groups_and_schedule_go_on(self, toy, make_select, train):
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

    def test_undo_restores_state_bit_for_bit(self, toy, make_select, make, train, state_of, assert_same):
        optimizer = make(list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        held = {p: (id(optimizer.state[p]), state_of(optimizer, p)) for p in list(optimizer.state)}
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.RESET)
        operation.undo.undo()
        assert set(optimizer.state) == set(held)
        for p, (identity, entry) in held.items():
            assert id(optimizer.state[p]) == identity
            assert_same(optimizer.state[p], entry)
        train(toy, optimizer, 2, seed=2)

    def test_preparing_changes_nothing(self, toy, make_select, optimizers, train, state_of, assert_same):
        optimizer = optimizers["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = state_of(optimizer, toy.B)
        prepare_state(optimizer, [("toy", toy, make_select(toy, KEEP))], StatePolicy.TRANSPORT)
        assert_same(optimizer.state[toy.B], before)

    def test_a_failing_swap_leaves_the_state(self, toy, make_select, optimizers, train, state_of, assert_same):
        optimizer = optimizers["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = state_of(optimizer, toy.B)
        update = make_select(toy, KEEP)
        with pytest.raises(SurgeryError):
            operate([("toy", toy, replace(update, attributes={"none": 0}))], optimizer, StatePolicy.TRANSPORT)
        assert_same(optimizer.state[toy.B], before)

    def test_a_parameter_of_no_given_optimizer_is_named(self, toy, make_select, optimizers, train):
        optimizer = optimizers["adam"]([toy.pole, toy.C, toy.D, toy.inner.weight])
        train(toy, optimizer, 1, seed=1)
        operation = operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert any("'B' belongs to no given optimizer" in w for w in operation.warnings)

    def test_without_an_optimizer(self, toy, make_select):
        assert operate([("toy", toy, make_select(toy, KEEP))], None, StatePolicy.TRANSPORT).warnings == ()
        assert toy.B.shape == (3, 3)

    def test_a_tied_parameter_is_carried_once(self, toy, make_toy, make_select, optimizers):
        other = make_toy()
        other.B = toy.B
        optimizer = optimizers["adam"](list(nn.ModuleList([toy, other]).parameters()))
        (toy(torch.randn(4, 3)) + other(torch.randn(4, 3))).square().sum().backward()
        optimizer.step()
        wanted = optimizer.state[toy.B]["exp_avg"][KEEP].clone()
        items = [("a", toy, make_select(toy, KEEP)), ("b", other, make_select(other, KEEP))]
        operate(items, optimizer, StatePolicy.TRANSPORT)
        assert torch.equal(optimizer.state[toy.B]["exp_avg"], wanted)
        assert all(optimizer.state[p]["exp_avg_sq"].shape == p.shape for p in optimizer.state)

    def test_narrow_state_keeps_its_dtype(self, toy, make_select, optimizers):
        toy.bfloat16()
        optimizer = optimizers["adam"](list(toy.parameters()))
        for p in toy.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        wanted = optimizer.state[toy.B]["exp_avg"][KEEP].clone()
        operate([("toy", toy, make_select(toy, KEEP))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["exp_avg"].dtype is torch.bfloat16
        assert torch.equal(optimizer.state[toy.B]["exp_avg"], wanted)
