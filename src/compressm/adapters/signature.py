"""What a layer holds, as names and shapes: how copies of one layer are known without their class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressm.errors import AdapterError

_SHAPE = re.compile(r"([a-z]|[0-9]+)( ([a-z]|[0-9]+))*( complex)?|module")


@dataclass(frozen=True)
class Signature:
    """Names of tensors inside a layer (parameters, buffers, plain attributes; dots for nested modules) and shapes.

    A shape is written as its sizes: a letter stands for the same size everywhere in the signature, a number for itself;
    "complex" at the end asks for a complex tensor, otherwise it must be real. "module" in place of a shape asks for a
    submodule of that name. The layer may hold more than that.
    """

    shapes: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, str]) -> Signature:
        """The signature written as `{"B": "n m complex", ...}`.

        Raises AdapterError where that is no mapping of names to shapes.
        """
        if not isinstance(shapes, Mapping) or not shapes:
            raise AdapterError(f'A signature is {shapes!r}; wanted names and shapes, as in {{"B": "n m", "C": "p n"}}.')
        for name, shape in shapes.items():
            if not isinstance(name, str) or not isinstance(shape, str) or not _SHAPE.fullmatch(shape):
                raise AdapterError(
                    f'A signature maps {name!r} to {shape!r}; wanted a shape such as "n", "n m complex" or "n m 2".'
                )
        return cls(tuple(sorted(shapes.items())))

    def matches(self, layer: nn.Module) -> bool:
        """Whether the layer holds all of the tensors, in shapes that agree with each other."""
        sizes: dict[str, int] = {}
        for name, shape in self.shapes:
            if shape == "module":
                if _submodule(layer, name) is None:
                    return False
                continue
            tensor = _held(layer, name)
            if tensor is None or not _agrees(tensor, shape.split(), sizes):
                return False
        return True

    def freedom(self) -> int:
        """How many sizes it leaves open: of two signatures that match, the one that leaves fewer open says more."""
        return len({size for _, shape in self.shapes for size in shape.split() if len(size) == 1 and size.isalpha()})

    def __str__(self) -> str:
        return ", ".join(f"{name} ({shape})" for name, shape in self.shapes)


def _submodule(layer: nn.Module, path: str) -> nn.Module | None:
    owner: nn.Module | None = layer
    for part in path.split(".") if path else ():
        owner = owner._modules.get(part) if owner is not None else None
    return owner


def _held(layer: nn.Module, name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    owner = _submodule(layer, path)
    if owner is None:
        return None
    for kind in (owner._parameters, owner._buffers, vars(owner)):
        tensor = kind.get(leaf)
        if isinstance(tensor, Tensor):
            return tensor
    return None


def _agrees(tensor: Tensor, wanted: list[str], sizes: dict[str, int]) -> bool:
    if tensor.is_complex() != (wanted[-1] == "complex"):
        return False
    wanted = [size for size in wanted if size != "complex"]
    if tensor.ndim != len(wanted):
        return False
    found = zip(wanted, tensor.shape, strict=True)
    return all((int(size) if size.isdigit() else sizes.setdefault(size, have)) == have for size, have in found)
