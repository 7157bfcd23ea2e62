"""What is around a kernel of the S4 repository: how its systems' inputs and outputs are seen from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressm.adapters.holding import double, held
from compressm.adapters.tapping import Tapped
from compressm.adapters.thirdparty.convolutions import convolved, evaluated, facing, system_input
from compressm.errors import AdapterError

Guard = Callable[[], AbstractContextManager[None]]
"""What a single pass of the layer runs under."""


class Surroundings(ABC):
    """The way into the systems of a layer and out of them."""

    takes_input: bool = True  # whether a call of the layer is given the systems' input

    @abstractmethod
    def shapes(self) -> dict[str, str]:
        """What the layer holds besides its kernel."""

    @abstractmethod
    def tap(self, layer: nn.Module) -> nn.Module | None:
        """The submodule that is called with the systems' output, None where that is what the layer returns."""

    @abstractmethod
    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The input `(batch, L, H)` of a call and its mask `(batch, L)`, True for data."""

    @abstractmethod
    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """An output, or a gradient at it, as `(batch, L, H p)`."""

    @abstractmethod
    def response(self, layer: nn.Module, u: Tensor, guard: Guard = nullcontext) -> Tensor:
        """The systems' output for the input `u` `(batch, L, H)`, arranged, from passes of the layer itself."""

    @abstractmethod
    def feedthrough(self, layer: nn.Module) -> Tensor | None:
        """D `(H, p, 1)`; AdapterError for what makes the layer no linear system from its input to its output."""


@dataclass(frozen=True)
class Convolution(Surroundings):
    """The input is convolved with the kernel and D u is added; `submodule` is called with that, as `(batch, p H, L)`.

    With the layer's option `bidirectional` the second half of the kernel's outputs runs backwards in time, from the
    next step on, and is added to the first. It is read as further outputs; what is balanced and reported on is that
    system, and the layer's own H-infinity error is at most twice the reported one. Each captured sequence counts twice,
    as it is and reversed. `weights` names the kernel's output weights, which have the outputs in their first dimension.
    With `takes_lengths` the layer sets its input to 0 from the `lengths` on that it is called with.
    """

    submodule: str
    weights: str = "kernel.C"
    takes_lengths: bool = False

    def shapes(self) -> dict[str, str]:
        """D and the submodule."""
        return {"D": "q h", self.submodule: "module"}

    def tap(self, layer: nn.Module) -> nn.Module:
        """The submodule."""
        return layer.get_submodule(self.submodule)

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; AdapterError for a call with a state or a rate other than 1."""
        u, mask = system_input(layer, args, kwargs), None
        lengths = kwargs.get("lengths", args[3] if len(args) > 3 else None)
        if self.takes_lengths and isinstance(lengths, int | Tensor):
            ends = torch.as_tensor(lengths, device=u.device).reshape(-1, 1).expand(len(u), 1)
            mask = torch.arange(u.shape[1], device=u.device) < ends
        if not is_bidirectional(layer):
            return u, mask
        return torch.cat([u, u.flip(1)]), None if mask is None else torch.cat([mask, mask.flip(1)])

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """With `bidirectional` `(2 batch, L, H 2 p)`, first for what runs forwards."""
        value = _by_channel(layer, value)
        if not is_bidirectional(layer):
            return value
        value = value.unflatten(-1, (held(layer, "D").shape[1], -1))
        later = nn.functional.pad(value.flip(1)[:, 1:], (0, 0, 0, 0, 0, 1))
        forwards, backwards = torch.cat([value, torch.zeros_like(value)], -1), torch.cat([0 * later, later], -1)
        return torch.cat([forwards, backwards]).flatten(-2)

    def response(self, layer: nn.Module, u: Tensor, guard: Guard = nullcontext) -> Tensor:
        """What goes into the submodule, without dropout; with `bidirectional` each half for itself."""
        with evaluated(layer):
            if not is_bidirectional(layer):
                return self._passed(layer, u, guard)
            with self._half(layer, 0):
                forwards = self._passed(layer, u, guard)
            with self._half(layer, 1):
                u = nn.functional.pad(u, (0, 0, 0, 1)).flip(1)
                backwards = self._passed(layer, u, guard).flip(1)[:, 1:]
            both = [y.unflatten(-1, (held(layer, "D").shape[1], -1)) for y in (forwards, backwards)]
            return torch.cat(both, -1).flatten(-2)

    def feedthrough(self, layer: nn.Module) -> Tensor:
        """D; with `bidirectional` of the outputs that run forwards."""
        for option, plain, reason in (
            ("hyper", False, "its output is multiplied by another one of its outputs"),
            ("bottleneck", None, "its input goes through a nonlinear map before the system"),
        ):
            if (found := vars(layer).get(option, plain)) != plain:
                name = type(layer).__name__
                raise AdapterError(
                    f"{name} with {option}={found!r} cannot be cut: {reason}. Build it without, or leave it alone "
                    f"with adapters={{{name}: None}}."
                )
        d = double(layer, "D").mT.unsqueeze(-1)
        return torch.cat([d, torch.zeros_like(d)], 1) if is_bidirectional(layer) else d

    def _passed(self, layer: nn.Module, u: Tensor, guard: Guard) -> Tensor:
        """What goes into the submodule for an input `(batch, L, H)`, as `(batch, L, H p)`."""
        with guard(), Tapped(self.tap(layer), layer) as tapped:
            type(layer).forward(layer, facing(layer, u))
            return _by_channel(layer, tapped.take())

    @contextmanager
    def _half(self, layer: nn.Module, half: int) -> Iterator[None]:
        """With one half of the kernel's outputs alone, and D only with the first; as it was afterwards."""
        path, _, leaf = self.weights.rpartition(".")
        kernel = layer.get_submodule(path)
        table: dict[str, Tensor | None] = kernel._parameters if leaf in kernel._parameters else kernel._buffers  # pyright: ignore[reportAssignmentType]
        own: dict[str, Tensor | None] = layer._parameters  # pyright: ignore[reportAssignmentType]
        c, d = table[leaf], own["D"]
        if c is None or d is None:
            raise AdapterError(f"{type(layer).__name__} has lost {self.weights} or D.")
        keep = torch.arange(len(c), device=c.device) // (len(c) // 2) == half
        table[leaf], own["D"] = c * keep.reshape(-1, *(1,) * (c.ndim - 1)), d * (1 - half)
        try:
            yield
        finally:
            table[leaf], own["D"] = c, d


@dataclass(frozen=True)
class Alone(Surroundings):
    """A kernel module that a layer of another kind calls for its impulse responses `(p, H, L)`, or `(H, L)`.

    Neither the systems' input nor their output is seen, so nothing is captured: Gramians are those of white input.
    """

    takes_input = False

    def shapes(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def tap(self, layer: nn.Module) -> None:
        """The layer returns all there is."""

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """AdapterError: a kernel has no input."""
        raise AdapterError(f"{type(layer).__name__} is a kernel that others convolve with; it is given no input.")

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """Impulse responses `(p, H, L)` as those of a batch of one, `(1, L, H p)`."""
        return value.permute(2, 1, 0).flatten(-2).unsqueeze(0)

    def response(self, layer: nn.Module, u: Tensor, guard: Guard = nullcontext) -> Tensor:
        """The convolution with the kernel's own impulse responses."""
        with evaluated(layer), guard():
            found = type(layer).forward(layer, L=u.shape[1])
            kernel = found[0] if isinstance(found, tuple) else found
            return convolved(u, kernel if kernel.ndim == 3 else kernel.unsqueeze(0))

    def feedthrough(self, layer: nn.Module) -> None:
        """A kernel has no D."""


def is_bidirectional(layer: nn.Module) -> bool:
    """Whether half of the kernel's outputs run backwards."""
    return bool(vars(layer).get("bidirectional", False))


def _by_channel(layer: nn.Module, value: Tensor) -> Tensor:
    """What is (p, H) or, with the option `swap_channels`, (H, p) channels, as `(batch, L, H p)`."""
    if not vars(layer).get("swap_channels", False):
        value = value.unflatten(1, (held(layer, "D").shape[0], -1)).transpose(1, 2).flatten(1, 2)
    return value.mT
