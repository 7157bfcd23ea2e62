"""The first input of a submodule, as a layer's forward pass hands it over."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from compressm.errors import AdapterError


class Tapped:
    """Keeps what the submodule `tap` of `layer` was last called with, from the start until it is removed.

    A context manager that removes itself. Compiled code and deep copies of the submodule are not watched.
    """

    def __init__(self, tap: nn.Module, layer: nn.Module) -> None:
        self._layer, self._seen = type(layer).__name__, list[object]()
        seen = self._seen  # a function, unlike a method, is not copied with the module

        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            if module is tap and not torch.compiler.is_compiling():
                seen[:] = args[:1]

        self._handle = tap.register_forward_pre_hook(hook)

    def take(self) -> Tensor:
        """What was seen last, which is forgotten. Raises AdapterError where that is no tensor."""
        seen = self._seen.pop() if self._seen else None
        if not isinstance(seen, Tensor):
            raise AdapterError(
                f"{self._layer}: its forward pass did not call the submodule whose input should be the system's "
                f"output. It goes another way than the adapter knows; register an adapter of its own, or leave it "
                f"alone with adapters={{{self._layer}: None}}."
            )
        return seen

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()
        self._seen.clear()

    def __enter__(self) -> Tapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
