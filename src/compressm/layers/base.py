"""What every state space layer of the library offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor, nn

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError
from compressm.layers.layout import Layout
from compressm.layers.systems import LinearSystem

LARGEST_SIZE = 2**24
"""No layer is wider or has more states."""

_E = TypeVar("_E", bound=Enum)


class SequenceLayer(nn.Module, ABC):
    """Base of causal linear layers (batch, L, H) -> (batch, L, H) that run over whole sequences or step by step.

    Both forms give the same output. `width` and `order` are read off the parameters, so that resizing these in place
    is all it takes to change the order.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """The number H of inputs and outputs."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The number of stored states (for a bank of systems, of each)."""

    @abstractmethod
    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output (batch, L, H) for the input u (batch, L, H) from a zero state.

        Where `mask` (batch, L) is False the input counts as zero; outputs there mean nothing.
        """

    @abstractmethod
    def initial_state(self, batch: int) -> Tensor:
        """The zero state; its first dimension is the batch."""

    @abstractmethod
    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output (batch, H) and the next state for one input u (batch, H)."""

    def layout(self, batch: int, length: int) -> Layout:
        """The order of memory in which `forward` is fastest."""
        return Layout.ROWS

    def system(self) -> LinearSystem | None:
        """The layer as a linear system of the parameters' present values, whose state is that of `step`.

        Streaming is fast where there is one; None where the layer has no such form.
        """
        return None

    def extra_repr(self) -> str:
        """Width and order."""
        return f"width={self.width}, order={self.order}"


def check_size(layer: str, width: int, order: int, generator: torch.Generator | None) -> None:
    """Raise ConfigError unless a layer of this width and order exists, and `generator` is one."""
    require_kind(f"{layer}: generator", generator, torch.Generator, type(None))
    require_integer(f"{layer}: width", width, 1, most=LARGEST_SIZE)
    require_integer(f"{layer}: order", order, 0, most=LARGEST_SIZE)


def member(kind: type[_E], value: object, name: str) -> _E:
    """The member of an Enum, given as itself or by value; raises ConfigError for anything else."""
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; wanted one of {[m.value for m in kind]}.") from None
