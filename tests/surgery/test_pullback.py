"""Moments of several parameters follow a change of basis jointly, as gradients and as variances."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate, Pullback, Reset
from compressm.errors import SurgeryError
from compressm.surgery.operation import operate
from compressm.surgery.policy import StatePolicy


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

    def second_moment(self, before: dict[str, Tensor], also: dict[str, Tensor], key: str) -> Tensor:
        """(V^2)^T (v - m^2 / rho^2) + (V^T m)^2 / rho^2 with rho the largest |m| / sqrt(v) of both parameters."""
        power = 2 if key == "exp_inf" else 1
        rho = max((e["exp_avg"].double().square() / e[key].double() ** power).max() for e in (before, also))
        m, v = before["exp_avg"].double(), before[key].double() ** power
        return self.V.square().mT @ (v - m.square() / rho) + (self.V.mT @ m).square() / rho

    def test_moments_follow_jointly(self, toy, optimizers, train, state_of):
        optimizer = optimizers["amsgrad"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        calls = []
        update = embed(toy, self.V)
        first = update.maps[0]
        counted = replace(first, covector_map=lambda old: calls.append(set(old)) or first.covector_map(old))
        before, also = state_of(optimizer, toy.B), state_of(optimizer, toy.inner.weight)
        operate([("t", toy, replace(update, maps=(counted, update.maps[1])))], optimizer, StatePolicy.TRANSPORT)
        after = optimizer.state[toy.B]
        assert calls == [{"B", "inner.weight"}]
        assert after["exp_avg"].dtype is torch.float32
        torch.testing.assert_close(after["exp_avg"], (self.V.mT @ before["exp_avg"].double()).float())
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            wanted = self.second_moment(before, also, key)
            torch.testing.assert_close(after[key], wanted.float())
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

    def test_the_root_of_a_second_moment(self, toy, optimizers, train, state_of):
        optimizer = optimizers["adamax"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        before, also = state_of(optimizer, toy.B), state_of(optimizer, toy.inner.weight)
        operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        wanted = self.second_moment(before, also, "exp_inf").sqrt()
        torch.testing.assert_close(optimizer.state[toy.B]["exp_inf"], wanted.float())

    @pytest.mark.parametrize("name", ["adam", "amsgrad", "adamax"])
    def test_no_step_grows_where_all_gradients_agree(self, toy, optimizers, name):
        optimizer = optimizers[name](list(toy.parameters()))
        for _ in range(5):
            for p in toy.parameters():
                p.grad = torch.full_like(p, 0.3)
            optimizer.step()
        columns = TestPullback.V.abs()  # all of one sign: the averages add up

        def largest() -> float:
            entries = [optimizer.state[p] for p in (toy.B, toy.inner.weight)]
            root = [e["exp_inf"] if "exp_inf" in e else e["exp_avg_sq"].sqrt() for e in entries]
            return max((e["exp_avg"].abs() / r).max().item() for e, r in zip(entries, root, strict=True))

        before = largest()
        operate([("toy", toy, embed(toy, columns))], optimizer, StatePolicy.TRANSPORT)
        assert largest() == pytest.approx(before, rel=1e-5)

    def test_centred_second_moments_stay_above_the_squared_mean(self, toy, optimizers, train):
        optimizer = optimizers["rmsprop centered"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        for p in toy.parameters():  # a constant gradient: no spread at all
            entry = optimizer.state[p]
            entry["grad_avg"].fill_(0.7)
            entry["square_avg"].copy_(entry["grad_avg"].square())
        operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        train(toy, optimizer, 3, seed=2)
        assert all(torch.isfinite(p).all() for p in toy.parameters())

    def test_a_normalised_average_does_not_depend_on_the_scale_of_the_new_basis(self, toy, make_toy, train):
        buffers = []
        for factor in (1.0, 1e-3):
            torch.manual_seed(3)
            model = make_toy()
            optimizer = torch.optim.RMSprop(model.parameters(), lr=0.05, momentum=0.9, eps=1e-30)
            train(model, optimizer, 3, seed=1)
            operate([("toy", model, embed(model, factor * self.V))], optimizer, StatePolicy.TRANSPORT)
            buffers.append(optimizer.state[model.B]["momentum_buffer"])
        torch.testing.assert_close(buffers[0], buffers[1])

    def test_one_member_without_state_restarts_the_others(self, toy, optimizers, train):
        toy.inner.weight.requires_grad_(False)
        optimizer = optimizers["adam"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        operation = operate([("toy", toy, embed(toy, self.V))], optimizer, StatePolicy.TRANSPORT)
        assert any("'B'" in w and "'inner.weight' has none" in w for w in operation.warnings)
        assert optimizer.state[toy.B]["exp_avg"].eq(0).all()
        assert optimizer.state[toy.B]["step"] == 0
        assert toy.inner.weight not in optimizer.state

    def test_members_may_belong_to_several_optimizers(self, toy, optimizers, state_of):
        pair = [optimizers["adam"]([toy.B]), optimizers["adam"]([toy.inner.weight, toy.pole, toy.C, toy.D])]
        for _ in range(2):
            toy(torch.randn(6, 3)).square().mean().backward()
            for optimizer in pair:
                optimizer.step()
        before = state_of(pair[0], toy.B)["exp_avg"].double()
        operation = operate([("toy", toy, embed(toy, self.V))], pair, StatePolicy.TRANSPORT)
        assert operation.warnings == ()
        torch.testing.assert_close(pair[0].state[toy.B]["exp_avg"], (self.V.mT @ before).float())

    def test_different_kinds_of_optimizers_restart(self, toy, optimizers):
        pair = [optimizers["lion"]([toy.B]), optimizers["adam"]([toy.inner.weight, toy.pole, toy.C, toy.D])]
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
    def test_a_map_that_does_not_fit_changes_nothing(
        self, toy, result, message, optimizers, train, state_of, assert_same
    ):
        optimizer = optimizers["adam"](list(toy.parameters()))
        train(toy, optimizer, 2, seed=1)
        before = {p: state_of(optimizer, p) for p in toy.parameters()}
        update = embed(toy, self.V)
        bad = replace(update.maps[0], variance_map=result)
        with pytest.raises(SurgeryError, match=message):
            operate([("toy", toy, replace(update, maps=(update.maps[1], bad)))], optimizer, StatePolicy.TRANSPORT)
        assert toy.B.shape == (8, 3)
        for p, entry in before.items():
            assert_same(optimizer.state[p], entry)

    def test_a_map_with_first_moments_only_resets_the_whole_parameter(self, toy, optimizers, train):
        class FirstOnly(Pullback):
            def variances(self, old):
                return None

        optimizer = optimizers["adam"](list(toy.parameters()))
        train(toy, optimizer, 3, seed=1)
        update = embed(toy, self.V)
        joint = update.maps[0]
        half = FirstOnly(joint.names, joint.covector_map, joint.variance_map)
        operate([("toy", toy, replace(update, maps=(half, update.maps[1])))], optimizer, StatePolicy.TRANSPORT)
        assert optimizer.state[toy.B]["exp_avg"].eq(0).all()
        assert optimizer.state[toy.B]["step"] == 0
