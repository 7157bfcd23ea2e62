"""Every law of an adapter, broken on purpose by an adapter that is right but for one thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.lru import LRUAdapter
from compressm.adapters.update import LayerUpdate, Reset
from compressm.errors import AdapterError, AdapterLawError, CompressmError
from compressm.layers.bidirectional import Bidirectional
from compressm.layers.dense import DenseSSM
from compressm.layers.lru import LRU
from compressm.reduction.result import Reduction
from compressm.testing import check_adapter

TITLES = dict(
    enumerate(
        ("realization", "round trip", "order", "bound", "stability", "purity", "identity", "repeatability"), start=1
    )
)


def broken_law(law: int, make_layer: Callable[[], nn.Module], adapter: StateSpaceAdapter | None = None) -> str:
    """The message of the law that is broken, which must be `law` and say what was found, wanted and to be done."""
    with pytest.raises(AdapterLawError) as caught:
        check_adapter(make_layer, adapter)
    message = str(caught.value)
    assert message.startswith(f"Law {law} ({TITLES[law]}) is broken: "), message
    assert re.search(r"is broken: .{10,}; wanted .{3,}\. Remedy: .{5,}\.$", message, re.DOTALL), message
    return message


def smaller(layer: nn.Module, reduction: Reduction) -> bool:
    return reduction.order < len(layer.a_re)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "order"), [(1, 2), (1, 7), (3, 8), (5, 24)])
@pytest.mark.parametrize("kind", [LRU, DenseSSM])
def test_our_layers_obey(kind: type[LRU | DenseSSM], width: int, order: int, dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        return kind(width, order, generator=torch.Generator().manual_seed(3)).to(dtype)

    for wanted in {1, order // 2, order - 1}:
        check_adapter(make, order=wanted)


@pytest.mark.parametrize("kind", [LRU, DenseSSM])
def test_the_layers_inside_a_bidirectional_one_obey(kind: type[LRU | DenseSSM]) -> None:
    for side in ("ahead", "behind"):
        check_adapter(lambda side=side: getattr(Bidirectional(kind(2, 6), kind(2, 6)), side))


def test_a_right_adapter_given_by_hand_passes(modal: Any, modal_adapter: Any) -> None:
    check_adapter(modal, modal_adapter())


@pytest.mark.parametrize(
    ("read", "said"),
    [
        pytest.param(lambda layer, s: replace(s, c=s.c / 2), "it is 2 times that", id="missing factor 2"),
        pytest.param(lambda layer, s: replace(s, c=-s.c), "it is -1 times that", id="sign"),
        pytest.param(lambda layer, s: replace(s, a=s.a.conj().resolve_conj()), "a sign", id="wrong sign of the angle"),
        pytest.param(lambda layer, s: replace(s, d=None), "Only step 0 differs: D is missing", id="D forgotten"),
        pytest.param(lambda layer, s: replace(s, b=s.b.roll(1, 0)), "look in read()", id="rows of B in another order"),
        pytest.param(lambda layer, s: replace(s, c=s.c[:1], d=s.d[:1]), "has the shape", id="one output of two"),
        pytest.param(lambda layer, s: replace(s, a=s.a / 0.9), "It decays by a factor of 0.9 a step", id="radius"),
        pytest.param(lambda layer, s: replace(s, c=s.c * s.a), "It comes one step later", id="one step early"),
        pytest.param(lambda layer, s: replace(s, c=s.c / s.a), "It comes one step earlier", id="one step late"),
        pytest.param(
            lambda layer, s: replace(s, b=s.c.mT, c=s.b.mT, d=s.d.mT.contiguous()),
            "Inputs and outputs are exchanged",
            id="transposed",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_law_1_a_misread_system(read: Any, said: str, dtype: torch.dtype, modal: Any, broken: Any) -> None:
    message = broken_law(1, lambda: modal().to(dtype), broken(read=read))
    assert "impulse response" in message
    assert said in message or (dtype is torch.bfloat16 and "look in read()" in message)  # rounding hides the shape


def test_law_1_a_response_one_step_late(modal: Any, modal_adapter: Any) -> None:
    def late() -> nn.Module:
        layer = modal()
        layer.late = True
        return layer

    message = broken_law(1, late, modal_adapter())
    assert "from step 0 on" in message and "It comes one step later" in message


def test_law_1_a_read_that_fails(modal: Any) -> None:
    message = broken_law(1, modal, LRUAdapter())
    assert "read() raised AttributeError" in message and "nu_log" in message


def test_law_1_a_forward_with_other_arguments(modal: Any, modal_adapter: Any) -> None:
    class TimeFirst(modal):
        def forward(self, u: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(u)

    assert "override response()" in broken_law(1, TimeFirst, modal_adapter())


def test_law_2_a_write_that_scales(modal: Any, broken: Any, change: Any) -> None:
    write = broken(write=lambda layer, r, update: change(update, b_re=2 * update.tensors["b_re"]))
    message = broken_law(2, modal, write)
    assert "before its own system was written back" in message and "write() has to undo whatever read()" in message


def test_law_2_a_write_that_forgets_the_poles(modal: Any, broken: Any, change: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        return change(update, a_re=layer.a_re.detach()[: reduction.order].clone())

    broken_law(2, modal, broken(write=write))


def test_law_2_a_write_that_returns_no_update(modal: Any, broken: Any) -> None:
    assert "write() returned dict" in broken_law(2, modal, broken(write=lambda layer, r, u: dict(u.tensors)))


def test_law_2_a_write_that_fails(modal: Any, broken: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        raise IndexError("no such state")

    assert "write() raised IndexError: no such state" in broken_law(2, modal, broken(write=write))


def test_law_3_an_order_declared_wrong(modal: Any, broken: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        return replace(update, order=len(layer.a_re))

    assert "read() gives the order 3; wanted the order that the update declares (6)" in broken_law(
        3, modal, broken(write=write)
    )


def test_law_3_a_resized_parameter_without_a_map(modal: Any, broken: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        return replace(update, maps=(Reset(update.maps[0].names[:-1]),))

    message = broken_law(3, modal, broken(write=write))
    assert "'c_im'" in message and "map" in message


def test_law_3_the_logarithm_of_zero(modal: Any, broken: Any, change: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        angle = torch.zeros(1) if smaller(layer, reduction) else torch.ones(1)
        return change(update, d=update.tensors["b_re"].new_full((2, 2), float(angle.log())) + layer.d.detach())

    message = broken_law(3, modal, broken(write=write))
    assert "'d'" in message and "finite" in message


def test_law_3_a_size_left_behind(modal: Any, broken: Any) -> None:
    class Sized(modal):
        def __init__(self) -> None:
            super().__init__()
            self.states = 6

        def forward(self, u: Tensor) -> Tensor:
            self.a_re.view(self.states)
            return super().forward(u)

    assert "forward pass raised RuntimeError" in broken_law(3, Sized, broken())
    resized = broken(write=lambda layer, r, update: replace(update, attributes={"states": update.order}))
    check_adapter(Sized, resized)


def test_law_3_a_gradient_that_is_not_finite(modal: Any, broken: Any, change: Any) -> None:
    class Rooted(modal):
        def __init__(self) -> None:
            super().__init__()
            self.root = nn.Parameter(torch.ones(1))

        def forward(self, u: Tensor) -> Tensor:
            return super().forward(u) + 0 * self.root.sqrt()

    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        return change(update, root=torch.zeros(1)) if smaller(layer, reduction) else update

    assert "the gradient of root is not finite" in broken_law(3, Rooted, broken(write=write))


def test_law_4_an_error_above_the_bound(modal: Any, broken: Any, change: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        c = update.tensors["c_re"]
        return change(update, c_re=c * 8 if smaller(layer, reduction) else c)

    assert "H-infinity error" in broken_law(4, modal, broken(write=write))


def test_law_5_unstable_after_writing(modal: Any, broken: Any, change: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        on_circle = reduction.system.a / reduction.system.a.abs()
        poles = {f"a_{part}": getattr(on_circle, attribute) * (1 + 1e-6) for part, attribute in PARTS}
        return change(update, **poles) if smaller(layer, reduction) else update

    message = broken_law(5, modal, broken(write=write))
    assert "spectral radius is 1.00000" in message and "own dtype" in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(lambda layer: layer.b_re.data.mul_(2), "b_re", id="parameter"),
        pytest.param(lambda layer: layer.scratch.add_(1), "scratch", id="buffer"),
        pytest.param(lambda layer: setattr(layer, "note", "written"), "note", id="attribute"),
        pytest.param(lambda layer: setattr(layer, "cache", torch.ones(2)), "cache", id="new tensor"),
        pytest.param(lambda layer: setattr(layer, "scratch", torch.zeros(3).double()), "scratch", id="dtype"),
    ],
)
def test_law_6_a_write_that_changes_the_layer(spoil: Any, named: str, modal: Any, broken: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        spoil(layer)
        return update

    assert f"'{named}'" in broken_law(6, modal, broken(write=write))


def test_law_6_values_that_share_memory(modal: Any, broken: Any, change: Any) -> None:
    adapter = broken(write=lambda layer, r, update: change(update, d=layer.d.detach().mT.mT))
    assert "the new value of 'd' shares memory with the layer's 'd'" in broken_law(6, modal, adapter)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda layer: setattr(layer, "d", nn.Parameter(layer.d.detach().clone())),
            "'d' is another object;",
            id="new object",
        ),
        pytest.param(
            lambda layer: layer.c_im.requires_grad_(True),
            "'c_im' has requires_grad True instead of False;",
            id="thawed",
        ),
        pytest.param(
            lambda layer: layer.c_im.requires_grad_(False),
            "'c_im' has requires_grad False instead of True;",
            id="frozen",
        ),
        pytest.param(
            lambda layer: vars(layer.b_im).clear(), "'b_im' lost an attribute that was set on it;", id="attributes lost"
        ),
    ],
)
def test_law_7_a_parameter_that_loses_its_identity(spoil: Any, said: str, modal: Any, broken: Any) -> None:
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        spoil(layer)
        return update

    assert said in broken_law(7, modal, broken(write=write))


def test_law_8_a_second_write_that_does_something_else(modal: Any, broken: Any, change: Any) -> None:
    # Halves C as it goes over to conjugate pairs, and does so again where they are there already.
    def write(layer: nn.Module, reduction: Reduction, update: LayerUpdate) -> LayerUpdate:
        halved = {f"c_{part}": getattr(reduction.system.c, attribute) / 2 for part, attribute in PARTS}
        return replace(change(update, **halved), attributes={"gain": 2.0 * layer.gain})

    message = broken_law(8, modal, broken(write=write))
    assert "the first of two equal cuts" in message and "however often the layer was cut" in message
    assert "it is 0.5 times that" in message or "it is 2 times that" in message


PARTS = (("re", "real"), ("im", "imag"))


class Chosen(StateSpaceAdapter):
    """An adapter that admits a choice of states only, right or with values other than the kept ones."""

    form = Form.SELECTION

    def __init__(self, inner: StateSpaceAdapter, factor: float = 1.0) -> None:
        self.inner, self.factor = inner, factor

    def read(self, layer: nn.Module) -> Any:
        return self.inner.read(layer)

    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        assert reduction.keep is not None
        update = self.inner.write(layer, reduction)
        factor = self.factor if smaller(layer, reduction) else 1.0
        return replace(update, tensors={**update.tensors, "c_re": update.tensors["c_re"] * factor})


def test_a_choice_of_states(modal: Any, modal_adapter: Any) -> None:
    check_adapter(modal, Chosen(modal_adapter()))
    assert "the kept states unchanged" in broken_law(4, modal, Chosen(modal_adapter(), 1.1))


def test_a_layer_without_an_adapter(modal: Any) -> None:
    with pytest.raises(AdapterError, match=r"Modal has no adapter; pass adapter= or register one with @register"):
        check_adapter(modal)


def test_a_layer_with_nothing_to_cut(modal: Any, modal_adapter: Any) -> None:
    with pytest.raises(AdapterError, match="order 1; check_adapter needs one of 2 or more"):
        check_adapter(lambda: modal(order=1), modal_adapter())
    with pytest.raises(AdapterError, match="could not be reduced to the order 6"):
        check_adapter(modal, modal_adapter(), order=6)


def test_every_error_is_the_librarys_own() -> None:
    assert issubclass(AdapterLawError, CompressmError) and issubclass(AdapterLawError, AssertionError)
