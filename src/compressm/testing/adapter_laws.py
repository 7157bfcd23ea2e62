"""The laws of an adapter, executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressm.adapters.base import Form, StateSpaceAdapter
from compressm.adapters.holding import in_double, reference_tensor
from compressm.adapters.registry import LayerRef, find_adapter
from compressm.adapters.update import LayerUpdate
from compressm.analysis import LayerAnalysis, is_undamped
from compressm.errors import AdapterError, AdapterLawError, CompressmError
from compressm.linalg.norms import difference, error_bound, hinf_norm
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import FixedOrder
from compressm.reduction.keeping import BalancedSelection
from compressm.reduction.result import GramianSource, Reduction
from compressm.settings import CompressionSettings
from compressm.surgery.parameters import apply_update
from compressm.testing.diagnosis import diagnose
from compressm.testing.rewriting import rewrite

_LENGTH = 24  # steps of the impulse response that are compared
_LOOSEST = 0.1  # of the response's size: what rounding in the narrowest dtype may change
_REMEDIES = {
    1: "look in read() for a missing factor (2 for conjugate pairs, an input gain, the step size), a sign, D, or a "
    "response that starts one step late: y_k = C x_k after x_k = A x_{k-1} + B u_k",
    2: "write() has to undo whatever read() applies (gains, factors of 2, the step size, logarithms), for the poles "
    "and weights of reduction.system, not for those that the layer still holds",
    4: "write() does not store reduction.system: compare its poles, B and C with what read() gives afterwards",
    3: "compare what write() stores with reduction.system, and resize every tensor that carries the order",
    8: "write() has to store reduction.system in the same way however often the layer was cut: look for what it takes "
    "from the layer's present values or attributes",
}
_FAILURES = (CompressmError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def check_adapter(
    make_layer: Callable[[], nn.Module], adapter: StateSpaceAdapter | None = None, *, order: int | None = None
) -> None:
    """Run the eight laws of `StateSpaceAdapter` on fresh layers from `make_layer`.

    `adapter` is looked up in the registry where it is not given; `order` is the order to cut to (half by default).
    The layer should have generic weights (not zero) and a stable system. For a form that admits only a choice of
    states, the laws about similarity are replaced by those about selection.

    Raises AdapterLawError, naming the law, what was found and what was wanted, for the first law that is broken, and
    AdapterError where there is no adapter.
    """
    layer = make_layer()
    adapter = adapter if adapter is not None else find_adapter(layer)
    if adapter is None:
        raise AdapterError(
            f"{type(layer).__module__}.{type(layer).__qualname__} has no adapter; pass adapter= or register one with "
            f'@register_adapter("{type(layer).__module__}.{type(layer).__qualname__}").'
        )
    checker = _Checker(make_layer, adapter, order)
    checker.realization()
    checker.round_trip()
    checker.cut()
    checker.purity()
    checker.identity()
    checker.repeatability()


class _Checker:
    """Runs the laws for one adapter."""

    def __init__(self, make_layer: Callable[[], nn.Module], adapter: StateSpaceAdapter, order: int | None) -> None:
        self.make_layer, self.adapter = make_layer, adapter
        self.tolerance = 100 * torch.finfo(reference_tensor(make_layer()).dtype).eps ** 0.75
        self.full_order = self.read(make_layer(), 1, "realization").order
        if self.full_order < 2:
            raise AdapterError(f"The layer has the order {self.full_order}; check_adapter needs one of 2 or more.")
        self.order = self.full_order // 2 if order is None else order

    def realization(self) -> None:
        """Law 1."""
        layer = self.make_layer()
        system = self.read(layer, 1, "realization")
        self.require_same(1, "realization", layer, system, "the system that read() returns")

    def round_trip(self) -> None:
        """Law 2: writing the whole system in another basis keeps the map."""
        layer = self.make_layer()
        before = self.impulse(layer, 2, "round trip")
        self.rewrite(layer, 2, "round trip")
        after = self.impulse(layer, 2, "round trip")
        self.compare(2, "round trip", after, before, "the layer before its own system was written back")

    def cut(self) -> None:
        """Laws 3, 4 and 5 on one cut."""
        layer = self.make_layer()
        full = self.read(layer, 3, "order")
        values = self.analysis(layer).decide(reduce=False).values
        reduction = self.reduce(layer, "order")
        update = self.write(layer, reduction, 3, "order")
        self.apply(layer, update, 3, "order")
        stored = self.read(layer, 3, "order")
        if stored.order != update.order or stored.order > self.order:
            raise _broken(
                3,
                "order",
                f"after writing, read() gives the order {stored.order}",
                f"the order that the update declares ({update.order}), at most {self.order}",
                "resize every tensor and size attribute that carries the order, and set LayerUpdate.order",
            )
        self.require_finite(layer)
        self.require_same(3, "order", layer, stored, "the system that read() returns after the cut")
        if not stored.is_stable() and not (is_undamped(full) and is_undamped(stored)):
            raise _broken(
                5,
                "stability",
                f"after writing, the spectral radius is {float(stored.spectral_radius().max()):.9g}",
                "a stable layer in the layer's own dtype, as the reduced system is",
                "store poles in a form that keeps |pole| < 1 under rounding, such as its logarithm",
            )
        self.require_error(full, stored, reduction, values)

    def purity(self) -> None:
        """Law 6."""
        layer = self.make_layer()
        before, attributes = _tensors(layer), _attributes(layer)
        copies = {name: t.detach().clone() for name, t in before.items()}
        update = self.write(layer, self.reduce(layer, "purity"), 6, "purity")
        after = _tensors(layer)
        changed = [name for name in before if name not in after or not _same(after[name], copies[name])]
        changed += [name for name in after if name not in before]
        changed += sorted({name for name, _ in attributes.items() ^ _attributes(layer).items()})
        if changed:
            raise _broken(
                6, "purity", f"write() changed {', '.join(map(repr, changed))} of the layer", "a layer left as it was",
                "return new values in the LayerUpdate; surgery applies them",
            )  # fmt: skip
        memory = {t.untyped_storage().data_ptr(): name for name, t in before.items() if t.numel()}
        for name, tensor in update.tensors.items():
            if tensor.numel() and tensor.untyped_storage().data_ptr() in memory:
                owner = memory[tensor.untyped_storage().data_ptr()]
                raise _broken(
                    6, "purity", f"the new value of '{name}' shares memory with the layer's '{owner}'",
                    "tensors of their own", "clone it",
                )  # fmt: skip

    def identity(self) -> None:
        """Law 7, with all parameters trained and with all frozen."""
        for trained in (True, False):
            layer = self.make_layer().requires_grad_(trained)
            for parameter in layer.parameters():
                parameter.mark = "kept"  # type: ignore[attr-defined]
            before = {name: (p, p.dtype, p.device) for name, p in layer.named_parameters()}
            update = self.write(layer, self.reduce(layer, "identity"), 7, "identity")
            self.apply(layer, update, 7, "identity")
            after = dict(layer.named_parameters())
            for name, (parameter, dtype, device) in before.items():
                lost = [
                    what
                    for what, kept in (
                        ("is another object", after.get(name) is parameter),
                        (f"has the dtype {parameter.dtype} instead of {dtype}", parameter.dtype == dtype),
                        (f"is on {parameter.device} instead of {device}", parameter.device == device),
                        (
                            f"has requires_grad {parameter.requires_grad} instead of {trained}",
                            parameter.requires_grad == trained,
                        ),
                        ("lost an attribute that was set on it", getattr(parameter, "mark", None) == "kept"),
                    )
                    if not kept
                ]
                if lost:
                    raise _broken(
                        7, "identity", f"'{name}' {' and '.join(lost)}", "the same parameter with a new value",
                        "name it in LayerUpdate.tensors instead of assigning or changing it",
                    )  # fmt: skip

    def repeatability(self) -> None:
        """Law 8: what a cut layer is asked to store again, smaller or not, it stores as it is."""
        layer = self.make_layer()
        update = self.write(layer, self.reduce(layer, "repeatability"), 8, "repeatability")
        self.apply(layer, update, 8, "repeatability")
        before = self.impulse(layer, 8, "repeatability")
        again = self.analysis(layer).decide(reduce=True).reduction
        if again is None:
            self.rewrite(layer, 8, "repeatability")
        else:
            self.apply(layer, self.write(layer, again, 8, "repeatability"), 8, "repeatability")
        after = self.impulse(layer, 8, "repeatability")
        self.compare(8, "repeatability", after, before, "the layer after the first of two equal cuts")

    def rewrite(self, layer: nn.Module, law: int, title: str) -> None:
        """Write the layer's own system back in other states."""
        shared = self.adapter.selection(layer).shared
        reduction = rewrite(self.read(layer, law, title), self.adapter.form, shared=shared)
        self.apply(layer, self.write(layer, reduction, law, title), law, title)

    def apply(self, layer: nn.Module, update: LayerUpdate, law: int, title: str) -> None:
        """Apply the update, or a broken law."""
        try:
            apply_update(layer, update)
        except CompressmError as error:
            raise _broken(
                law, title, f"the update cannot be applied: {str(error).rstrip('.')}",
                "finite values with the dimensions of the layer's own tensors, a map for each resized parameter",
                "correct what write() returns",
            ) from error  # fmt: skip

    def read(self, layer: nn.Module, law: int, title: str) -> StateSpace:
        """The layer's system, or a broken law."""
        try:
            return self.adapter.read(layer).to_double()
        except _FAILURES as error:
            raise _broken(
                law, title, f"read() raised {type(error).__name__}: {error}", "a StateSpace",
                "check the parameter names and shapes that read() uses",
            ) from error  # fmt: skip

    def write(self, layer: nn.Module, reduction: Reduction, law: int, title: str) -> LayerUpdate:
        """The adapter's update, or a broken law."""
        try:
            update = self.adapter.write(layer, reduction)
        except _FAILURES as error:
            raise _broken(
                law, title, f"write() raised {type(error).__name__}: {error}", "a LayerUpdate",
                "check that write() stores reduction.system in the layer's parametrization",
            ) from error  # fmt: skip
        if not isinstance(update, LayerUpdate):
            raise _broken(law, title, f"write() returned {type(update).__name__}", "a LayerUpdate", "return one")
        return update

    def analysis(self, layer: nn.Module) -> LayerAnalysis:
        """The analysis of a cut to the order of the check under white input."""
        white = GramianSource.WHITE
        settings = CompressionSettings(FixedOrder(self.order), controllability=white, observability=white)
        if self.adapter.form is Form.SELECTION:
            settings = replace(settings, reducer=BalancedSelection())
        return LayerAnalysis(LayerRef("layer", layer, self.adapter), settings, None, None)

    def reduce(self, layer: nn.Module, title: str) -> Reduction:
        """The reduction of a cut to the order of the check."""
        decision = self.analysis(layer).decide(reduce=True)
        if decision.reduction is None:
            raise AdapterError(
                f"The layer could not be reduced to the order {self.order} for the law '{title}': "
                f"{'; '.join(decision.fallbacks) or 'it has no more states'}. Use a layer with generic weights."
            )
        return decision.reduction

    def impulse(self, layer: nn.Module, law: int, title: str) -> Tensor:
        """The layer's own impulse response `(L, H p, H m)` of all its channels, from its forward pass."""
        like = reference_tensor(layer)
        inputs = self.read(layer, law, title).input_features
        u = torch.zeros(inputs, _LENGTH, inputs)
        u[range(inputs), 0, range(inputs)] = 1
        with torch.no_grad():
            y = self.respond(layer, u.to(like.device, like.dtype), law, title)
        return in_double(y).permute(1, 2, 0)

    def respond(self, layer: nn.Module, u: Tensor, law: int, title: str) -> Tensor:
        """The layer's own output, or a broken law."""
        try:
            return self.adapter.response(layer, u)
        except _FAILURES as error:
            raise _broken(
                law, title, f"the layer's forward pass raised {type(error).__name__}: {error}", "an output",
                "override response() if the layer's input is not (batch, L, m)" if law == 1 else
                "check that every tensor and size attribute that carries the order is in the update",
            ) from error  # fmt: skip

    def require_same(self, law: int, title: str, layer: nn.Module, system: StateSpace, what: str) -> None:
        """The layer's impulse response equals the system's."""
        wanted = _side_by_side(system.markov_parameters(_LENGTH))
        found = self.impulse(layer, law, title)
        self.compare(law, title, found, wanted, what)

    def compare(self, law: int, title: str, found: Tensor, wanted: Tensor, what: str) -> None:
        """Two impulse responses agree within the layer's precision."""
        if found.shape == wanted.shape:
            error, allowed = (
                (found - wanted).abs(),
                min(self.tolerance, _LOOSEST) * max(float(wanted.abs().max()), 1e-30),
            )
            wrong = ~(error.amax((1, 2)) <= allowed)
            if not bool(wrong.any()):
                return
            text = (
                f"the layer's impulse response differs from that of {what} by {float(error.max()):.2e}, from step "
                f"{int(wrong.nonzero()[0])} on"
            )
        else:
            text = (
                f"the layer's impulse response (L, outputs, inputs) has the shape {tuple(found.shape)}, that of {what} "
                f"{tuple(wanted.shape)}"
            )
        hint = diagnose(found, wanted)
        text += "" if hint is None else f". {hint}"
        raise _broken(
            law, title, text, f"agreement (the response's size is {float(wanted.abs().max()):.2e})", _REMEDIES[law]
        )

    def require_finite(self, layer: nn.Module) -> None:
        """Forward and backward of a cut layer give finite numbers."""
        like = reference_tensor(layer)
        u = torch.randn(2, 8, self.adapter.read(layer).input_features, generator=torch.Generator().manual_seed(0))
        y = self.respond(layer, u.to(like.device, like.dtype), 3, "order")
        y.abs().square().sum().backward()
        bad = [name for name, p in layer.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
        if bad or not bool(y.isfinite().all()):
            where = f"the gradient of {', '.join(bad)}" if bad else "the output"
            raise _broken(
                3, "order", f"after the cut {where} is not finite", "finite outputs and gradients",
                "check how poles at 0, real poles and negative real poles are stored (logarithms of zero, angles)",
            )  # fmt: skip

    def require_error(self, full: StateSpace, stored: StateSpace, reduction: Reduction, values: Tensor) -> None:
        """Law 4: the bound where there is one; elsewhere the stored system is the reduced one."""
        if is_undamped(full):  # its gain has no bound: the responses are compared
            found, wanted = (_real(s.markov_parameters(_LENGTH)) for s in (stored, reduction.system))
            self.compare(4, "bound", _side_by_side(found), _side_by_side(wanted), "the reduced system")
            return
        size = hinf_norm(full)
        if reduction.keep is None and self.adapter.form is not Form.SHARED:
            states = reduction.real_order if reduction.states is None else reduction.states
            bound, what = error_bound(values, states), "2 * (sum of the discarded Hankel singular values)"
            found = hinf_norm(difference(full, stored))
        else:
            bound = 0.0
            what = "the reduced system as it is" if reduction.keep is None else "the kept states unchanged"
            found = hinf_norm(difference(reduction.system, stored))
        if not found <= bound + self.tolerance * size:
            raise _broken(
                4, "bound", f"the H-infinity error after the cut is {found:.3e}", f"at most {bound:.3e}, {what}",
                _REMEDIES[4],
            )  # fmt: skip


def _real(response: Tensor) -> Tensor:
    return response.real if response.is_complex() else response


def _side_by_side(response: Tensor) -> Tensor:
    """Impulse responses `(*h, L, p, m)` of systems side by side as one, `(L, H p, H m)`, zero between them."""
    response = response.reshape(-1, *response.shape[-3:])
    systems, length, p, m = response.shape
    eye = torch.eye(systems, dtype=response.dtype)
    return torch.einsum("hlpm,hg->lhpgm", response, eye).reshape(length, systems * p, systems * m)


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return found | {name: value for name, value in _plain(layer) if isinstance(value, Tensor)}


def _attributes(layer: nn.Module) -> dict[str, object]:
    return {name: value for name, value in _plain(layer) if isinstance(value, bool | int | float | str)}


def _plain(layer: nn.Module) -> Iterator[tuple[str, object]]:
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if name != "training":
                yield (f"{path}.{name}" if path else name), value


def _same(first: Tensor, second: Tensor) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and bool(torch.equal(first, second))


def _broken(law: int, title: str, found: str, wanted: str, remedy: str) -> AdapterLawError:
    return AdapterLawError(f"Law {law} ({title}) is broken: {found}; wanted {wanted}. Remedy: {remedy}.")
