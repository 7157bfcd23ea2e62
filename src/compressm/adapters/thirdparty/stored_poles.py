"""Continuous poles in the forms in which kernels of the S4 repository store them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressm.adapters.holding import double
from compressm.adapters.thirdparty.transforms import LEAST, Transform
from compressm.errors import AdapterError


class StoredPoles(ABC):
    """Continuous poles -decay + i frequency `(S, n)`, as a kernel stores them; names are those inside the kernel."""

    names: tuple[str, ...]

    @abstractmethod
    def shapes(self, rows: str) -> dict[str, str]:
        """Those of the tensors, for `rows` in place of S."""

    @abstractmethod
    def read(self, kernel: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        """Decay rates and frequencies."""

    @abstractmethod
    def tensors(self, kernel: nn.Module, layer: str, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        """The tensors for decay rates and frequencies."""


@dataclass(frozen=True)
class SplitPoles(StoredPoles):
    """T(decay) and sign * frequency in two tensors; the kernel's `option` names T, which is exp without that option."""

    decay: str
    frequency: str
    sign: float
    option: str
    least: float = LEAST  # what T = relu adds

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Both tensors."""
        return self.decay, self.frequency

    def shapes(self, rows: str) -> dict[str, str]:
        """(S, n) each."""
        return {self.decay: f"{rows} n", self.frequency: f"{rows} n"}

    def read(self, kernel: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        """Through T and the sign."""
        decay = self._transform(kernel, layer).apply(double(kernel, self.decay), self.least)
        return decay, self.sign * double(kernel, self.frequency)

    def tensors(self, kernel: nn.Module, layer: str, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        """AdapterError for a decay rate that T does not reach."""
        stored = self._transform(kernel, layer).invert(decay, self.option, layer, self.least)
        return {self.decay: stored, self.frequency: self.sign * frequency}

    def _transform(self, kernel: nn.Module, layer: str) -> Transform:
        return Transform.named(vars(kernel).get(self.option, "exp"), self.option, layer)


@dataclass(frozen=True)
class ViewedPoles(StoredPoles):
    """The poles themselves, as the real view of a complex tensor."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tensor."""
        return (self.name,)

    def shapes(self, rows: str) -> dict[str, str]:
        """(S, n, 2)."""
        return {self.name: f"{rows} n 2"}

    def read(self, kernel: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        """Minus the real part, and the imaginary part."""
        re, im = double(kernel, self.name).unbind(-1)
        return -re, im

    def tensors(self, kernel: nn.Module, layer: str, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        """The real view."""
        return {self.name: torch.stack([-decay, frequency], -1)}


@dataclass(frozen=True)
class RealPoles(StoredPoles):
    """T(decay) alone, without a frequency; the kernel's `option` names T."""

    decay: str
    option: str

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tensor."""
        return (self.decay,)

    def shapes(self, rows: str) -> dict[str, str]:
        """(S, n)."""
        return {self.decay: f"{rows} n"}

    def read(self, kernel: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        """Through T, with frequencies of 0."""
        decay = Transform.named(vars(kernel).get(self.option, "exp"), self.option, layer).apply(
            double(kernel, self.decay)
        )
        return decay, torch.zeros_like(decay)

    def tensors(self, kernel: nn.Module, layer: str, decay: Tensor, frequency: Tensor) -> dict[str, Tensor]:
        """AdapterError: such poles can be kept, not changed."""
        raise AdapterError(f"{layer} stores real poles only: a reduced system has others. Its states can be chosen.")
