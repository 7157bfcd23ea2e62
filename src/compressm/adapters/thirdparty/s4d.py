"""S4D in the short form of the S4 repository (models/s4/s4d.py), which is copied more than it is installed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressm.adapters.registry import register_signature
from compressm.adapters.s4d import S4DFormAdapter
from compressm.adapters.thirdparty.convolutions import evaluated, facing, system_input
from compressm.adapters.thirdparty.surroundings import Alone
from compressm.adapters.weights import ExpandedWeights, ViewedWeights
from compressm.ops.sampling import Sampling

_SIZE = "n"  # of the real states, two for each that is stored
_SHAPES = {"log_dt": "h", "log_A_real": "h n", "A_imag": "h n", "C": "h n 2"}
_ALONE = Alone()


@register_signature({**{f"kernel.{name}": shape for name, shape in _SHAPES.items()}, "D": "h", "activation": "module"})
class ShortS4DAdapter(S4DFormAdapter):
    """`S4D` with its `S4DKernel`: s = -exp(log_A_real) + i A_imag, step exp(log_dt), zero-order hold, B = 1.

    y = 2 Re(C x) + D u goes into the submodule `activation` as `(batch, H, L)`; gradients are captured there. The
    attribute `n` follows. Known by what it holds, since the file is copied into other packages under other names.
    """

    prefix = "kernel."
    outputs = ExpandedWeights(ViewedWeights("kernel.C"), 1)

    def rule(self, layer: nn.Module) -> Sampling:
        """Zero-order hold."""
        return Sampling.ZOH

    def tap(self, layer: nn.Module) -> nn.Module:
        """`activation`."""
        return layer.get_submodule("activation")

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The first argument; the layer ignores all others."""
        return system_input(layer, args[:1] or (kwargs.get("u"),), {}), None

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """`(batch, L, H)`."""
        return value.mT

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """What goes into `activation`, without dropout."""
        with evaluated(layer):
            return super().response(layer, facing(layer, u))

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """The number of real states, where the layer keeps it."""
        return {_SIZE: 2 * order} if _SIZE in vars(layer) else {}


@register_signature(_SHAPES)
class ShortS4DKernelAdapter(S4DFormAdapter):
    """`S4DKernel` where another layer calls it for its impulse responses `(H, L)`: the same systems, without D.

    Neither their input nor their output is seen, so nothing is captured: Gramians are those of white input.
    """

    outputs = ExpandedWeights(ViewedWeights("C"), 1)

    def rule(self, layer: nn.Module) -> Sampling:
        """Zero-order hold."""
        return Sampling.ZOH

    def feedthrough(self, layer: nn.Module) -> None:
        """A kernel has no D."""

    def takes_input(self, layer: nn.Module) -> bool:
        """It does not."""
        return False

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """AdapterError: a kernel has no input."""
        return _ALONE.inputs(layer, args, kwargs)

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The convolution with the kernel's own impulse responses."""
        return _ALONE.response(layer, u)
