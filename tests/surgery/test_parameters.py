"""The swap keeps what holds a parameter, refuses what it cannot swap, and happens whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import SurgeryError, TiedParametersError
from compressm.surgery import parameters
from compressm.surgery.parameters import apply_update, apply_updates

KEEP = [6, 1, 3]


def fingerprint(module: nn.Module) -> dict[str, object]:
    state = {name: (id(p), p.data_ptr(), p.shape, p.detach().clone()) for name, p in module.named_parameters()}
    state |= {name: (id(b), b.data_ptr(), b.shape, b.clone()) for name, b in module.named_buffers()}
    return state | {"plain": (id(module.plain), module.plain.data_ptr(), module.plain.shape, module.plain.clone())}


def assert_unchanged(module: nn.Module, before: dict[str, object]) -> None:
    after = fingerprint(module)
    assert after.keys() == before.keys()
    for name, (*identity, values) in after.items():
        *was, old = before[name]
        assert identity == was, name
        assert torch.equal(values, old), name


class TestSwap:
    def test_the_layer_acts_as_the_kept_states(self, toy, make_select):
        u = torch.randn(5, 3)
        state = torch.tanh(toy.pole * (u @ toy.B.mT) + u @ toy.inner.weight.mT) * toy.scale + toy.plain
        wanted = state[:, KEEP] @ toy.C[:, KEEP].mT + toy.D
        apply_update(toy, make_select(toy, KEEP))
        torch.testing.assert_close(toy(u), wanted)
        assert toy.size == 3
        assert toy.plain.tolist() == [6.0, 1.0, 3.0]
        assert toy.inner.weight.shape == (3, 3)

    def test_objects_attributes_and_optimizer_groups_stay(self, toy, make_select):
        optimizer = torch.optim.SGD(toy.parameters(), lr=0.1)
        toy.B._optim = {"lr": 0.5}
        held = dict(toy.named_parameters())
        apply_update(toy, make_select(toy, KEEP))
        assert all(p is held[name] for name, p in toy.named_parameters())
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in toy.parameters()}
        assert toy.B._optim == {"lr": 0.5}
        before = toy.B.detach().clone()
        toy(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(toy.B, before)

    def test_a_tied_parameter_follows_in_the_other_module(self, toy, make_select):
        other = nn.Module()
        other.mirror = toy.B
        apply_update(toy, make_select(toy, KEEP))
        assert other.mirror is toy.B
        assert other.mirror.shape == (3, 3)

    def test_backward_hooks_stay(self, toy, make_select):
        seen = []
        toy.B.register_hook(lambda grad: seen.append(tuple(grad.shape)))
        toy.B.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
        apply_update(toy, make_select(toy, KEEP))
        toy(torch.randn(4, 3)).sum().backward()
        assert seen == [(3, 3), "accumulated"]

    def test_requires_grad_stays_and_the_gradient_goes(self, toy, make_select):
        toy.C.requires_grad_(False)
        toy(torch.randn(4, 3)).sum().backward()
        apply_update(toy, make_select(toy, KEEP))
        assert not toy.C.requires_grad
        assert toy.B.requires_grad
        assert toy.B.grad is None

    def test_a_stale_graph_that_saved_the_parameter_raises(self, toy, make_select):
        stale = toy(torch.randn(4, 3)).square().sum()
        apply_update(toy, make_select(toy, KEEP))
        toy(torch.randn(4, 3)).sum().backward()  # while the stale graph lives
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation|before a cut"):
            stale.backward()

    def test_a_stale_graph_that_is_linear_in_the_parameter_raises(self, toy, make_select):
        stale = (2 * toy.B).sum()
        apply_update(toy, make_select(toy, KEEP))
        with pytest.raises(SurgeryError, match="before a cut"):
            stale.backward()
        assert toy.B.grad is None

    def test_a_graph_between_two_cuts_is_refused_as_well(self, toy, make_select):
        apply_update(toy, make_select(toy, KEEP))
        stale = (2 * toy.B).sum()
        apply_update(toy, make_select(toy, [0, 2]))
        with pytest.raises(SurgeryError, match="before a cut"):
            stale.backward()

    def test_new_tensors_share_no_memory_with_the_update(self, toy, make_select):
        update = make_select(toy, KEEP)
        apply_update(toy, update)
        update.tensors["B"].zero_()
        assert toy.B.abs().min() > 0
        assert toy.B.is_contiguous()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_narrow_parameters_round_to_nearest(self, toy, make_reset, dtype):
        toy.to(dtype)
        update = make_reset(toy, KEEP)
        exact = 1 + torch.rand(3, 3, dtype=torch.float64)
        apply_update(toy, replace(update, tensors={**update.tensors, "B": exact}))
        assert toy.B.dtype is dtype
        spacing = torch.finfo(dtype).eps
        assert ((toy.B.double() - exact).abs() <= spacing / 2).all()

    def test_lazy_conjugates_are_resolved(self):
        layer = nn.Module()
        layer.w = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        value = torch.tensor([1 + 2j, 3j])
        apply_update(layer, LayerUpdate(2, {"w": value.conj()}, maps=(Reset(("w",)),)))
        assert torch.equal(torch.view_as_real(layer.w.detach()), torch.tensor([[1.0, -2.0], [0.0, -3.0]]))

    def test_a_transposed_value_becomes_contiguous(self, toy, make_reset):
        update = make_reset(toy, KEEP)
        value = torch.randn(3, 3).mT
        apply_update(toy, replace(update, tensors={**update.tensors, "B": value}))
        assert toy.B.is_contiguous()
        assert torch.equal(toy.B, value)


class TestUndo:
    def test_undo_restores_memory_gradients_and_attributes(self, toy, make_select):
        toy(torch.randn(4, 3)).sum().backward()
        before, grad = fingerprint(toy), toy.B.grad
        undo = apply_update(toy, make_select(toy, KEEP))
        undo.undo()
        undo.undo()
        assert_unchanged(toy, before)
        assert toy.B.grad is grad
        assert toy.size == 8
        toy(torch.randn(4, 3)).sum().backward()

    def test_an_attribute_of_the_class_is_taken_off_the_instance_again(self, toy, make_reset):
        type(toy).level = 1
        update = replace(make_reset(toy, KEEP), attributes={"level": 2, "size": 3})
        undo = apply_update(toy, update)
        assert toy.level == 2
        undo.undo()
        assert "level" not in vars(toy)
        assert toy.level == 1
        del type(toy).level

    @pytest.mark.parametrize("at", range(12))
    def test_an_interruption_leaves_everything_as_it_was(self, toy, make_toy, make_select, monkeypatch, at):
        other = make_toy()
        before, also = fingerprint(toy), fingerprint(other)
        original, calls = parameters.swap, []

        def interrupted(tensor, value, steps):
            calls.append(tensor)
            if len(calls) == at + 1:
                original(tensor, value, steps)
                raise KeyboardInterrupt
            original(tensor, value, steps)

        monkeypatch.setattr(parameters, "swap", interrupted)
        with pytest.raises(KeyboardInterrupt):
            apply_updates([("a", toy, make_select(toy, KEEP)), ("b", other, make_select(other, KEEP))])
        assert_unchanged(toy, before)
        assert_unchanged(other, also)
        assert toy.size == other.size == 8

    def test_a_failing_attribute_undoes_the_tensors(self, toy, make_select):
        class Strict(type(toy)):
            @property
            def level(self) -> int:
                return 0

            @level.setter
            def level(self, value: int) -> None:
                if value == 5:
                    raise ValueError(value)

        strict = Strict()
        before = fingerprint(strict)
        with pytest.raises(ValueError, match="5"):
            apply_update(strict, replace(make_select(strict, KEEP), attributes={"size": 3, "level": 5}))
        assert_unchanged(strict, before)
        assert strict.size == 8


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"missing": torch.zeros(1)}, "'missing' is not a parameter"),
            ({"size": torch.zeros(1)}, "'size' is not a parameter"),
            ({"nowhere.B": torch.zeros(1)}, "no submodule 'nowhere'"),
            ({"B": torch.zeros(3)}, "number of dimensions"),
            ({"B": torch.zeros(3, 3, dtype=torch.complex64)}, "without loss"),
            ({"B": torch.full((3, 3), torch.nan)}, "not finite"),
            ({"B": torch.full((3, 3), 1e300, dtype=torch.float64)}, "overflows"),
            ({"B": [1.0]}, "wanted a tensor"),
            ({"D": torch.zeros(5)}, "no map says"),
        ],
    )
    def test_bad_tensors(self, toy, make_toy, make_select, change, message):
        other = make_toy()
        before, also = fingerprint(toy), fingerprint(other)
        update = make_select(toy, KEEP)
        bad = replace(update, tensors={**update.tensors, **change})
        with pytest.raises(SurgeryError, match=message):
            apply_updates([("good", other, make_select(other, KEEP)), ("bad", toy, bad)])
        assert_unchanged(toy, before)
        assert_unchanged(other, also)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"absent": 1}, "does not exist"),
            ({"inner": nn.Linear(1, 1)}, "is a parameter, buffer or module"),
            ({"plain": 1}, "is a tensor"),
            ({"T_destination": 1, "nowhere.size": 1}, "no submodule"),
        ],
    )
    def test_bad_attributes(self, toy, make_select, attributes, message):
        before = fingerprint(toy)
        with pytest.raises(SurgeryError, match=message):
            apply_update(toy, replace(make_select(toy, KEEP), attributes=attributes))
        assert_unchanged(toy, before)

    def test_a_read_only_property(self, make_select, toy):
        class ReadOnly(type(toy)):
            order = property(lambda self: self.pole.shape[0])

        layer = ReadOnly()
        with pytest.raises(SurgeryError, match="read-only"):
            apply_update(layer, replace(make_select(layer, KEEP), attributes={"order": 3}))

    def test_maps_that_name_twice_or_nothing(self, toy, make_select):
        update = make_select(toy, KEEP)
        with pytest.raises(SurgeryError, match="two maps name 'C'"):
            apply_update(toy, replace(update, maps=(*update.maps, Reset(("C",)))))
        with pytest.raises(SurgeryError, match="names 'D'"):
            apply_update(toy, replace(update, maps=(*update.maps, Reset(("D",)))))

    def test_inference_mode_meta_lazy_computed_and_parametrized(self, toy, make_select):
        update = make_select(toy, KEEP)
        with torch.inference_mode(), pytest.raises(SurgeryError, match="inference_mode"):
            apply_update(toy, update)
        with torch.inference_mode():
            inferred = type(toy)()
        with pytest.raises(SurgeryError, match="inference_mode"):
            apply_update(inferred, update)
        with pytest.raises(SurgeryError, match="meta device"):
            apply_update(type(toy)().to("meta"), update)
        lazy = nn.LazyLinear(3)
        with pytest.raises(SurgeryError, match="not initialised"):
            apply_update(lazy, LayerUpdate(1, {"weight": torch.zeros(1, 1)}, maps=(Reset(("weight",)),)))
        pruned = type(toy)()
        del pruned.C
        pruned.C = pruned.B.mT * 2
        with pytest.raises(SurgeryError, match="computed from other tensors"):
            apply_update(pruned, update)
        wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
        with pytest.raises(SurgeryError, match="parametrization"):
            apply_update(wrapped, LayerUpdate(1, {"weight": torch.zeros(2, 3)}, maps=(Reset(("weight",)),)))

    def test_sharded_parameters(self, toy, make_select):
        update = make_select(toy, KEEP)
        toy.B._is_flat_param = True
        with pytest.raises(SurgeryError, match="sharded over processes"):
            apply_update(toy, update)
        del toy.B._is_flat_param
        toy.B.ds_id = 3
        with pytest.raises(SurgeryError, match="DeepSpeed"):
            apply_update(toy, update)

    def test_tied_layers_need_equal_values(self, toy, make_toy, make_select):
        other = make_toy()
        other.B = toy.B
        before = fingerprint(toy)
        with pytest.raises(TiedParametersError, match="one shared tensor"):
            apply_updates([("a", toy, make_select(toy, KEEP)), ("b", other, make_select(other, [0, 1, 2]))])
        assert_unchanged(toy, before)
        apply_updates([("a", toy, make_select(toy, KEEP)), ("b", other, make_select(other, KEEP))])
        assert other.B is toy.B
        assert toy.B.shape == (3, 3)
