"""The contract between a layer of the user's and the method: read a system, write a smaller one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum

from torch import Tensor, nn

from compressm.adapters.update import LayerUpdate
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction


class Form(Enum):
    """Which reductions a layer's parameters can express."""

    DIAGONAL = "diagonal"  # any similarity, then complex diagonal states with a real output: Re(C x)
    DENSE = "dense"  # any real similarity, real matrices A, B, C
    SELECTION = "selection"  # a choice of the present states only


class StateSpaceAdapter(ABC):
    """How one kind of layer is read as a linear system and how a reduced system is written back.

    An adapter obeys eight laws, which `compressm.testing.check_adapter` runs:

    1. realization: the Markov parameters of what `read` returns equal the layer's impulse response;
    2. round trip: writing an unreduced system in another basis leaves the input-output map as it was;
    3. order: after writing, `read` gives the order the update declares, at most the order asked for, and forward
       and backward are finite;
    4. bound: the error is at most 2 * (sum of the discarded Hankel singular values) for forms that admit a
       similarity, under white infinite-horizon Gramians; for all others the reported error equals the measured one;
    5. stability: the system is stable after writing, in the layer's own dtype;
    6. purity: `write` changes nothing and its tensors share no memory with the layer;
    7. identity: dtype, device, requires_grad and attributes of the parameters survive;
    8. repeatability: the same fixed order applied twice changes nothing the second time.
    """

    form: Form = Form.DIAGONAL
    full_feedthrough: bool = False  # whether D is a full p x m matrix that a reduction may change

    @abstractmethod
    def read(self, layer: nn.Module) -> StateSpace:
        """The layer's linear system as it acts in its forward pass (discrete), built without a graph."""

    @abstractmethod
    def write(self, layer: nn.Module, reduction: Reduction) -> LayerUpdate:
        """The new values that make `layer` act as `reduction.system`; changes nothing."""

    def inputs(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor | None]:
        """The input `(batch, L, m)` and mask `(batch, L)` (True where data is) of one forward call."""
        mask = kwargs.get("mask", args[1] if len(args) > 1 else None)
        u = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(u, Tensor):
            raise TypeError(f"{type(layer).__name__} was called without an input tensor as its first argument.")
        return u, mask if isinstance(mask, Tensor) else None

    def output(self, layer: nn.Module, result: object) -> Tensor:
        """The output `(batch, L, p)` among what one forward call returned."""
        value = result[0] if isinstance(result, tuple) else result
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(layer).__name__} returned {type(value).__name__}; wanted a tensor or a tuple of one."
            )
        return value

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The layer's own output for the input `u` `(batch, L, m)`, without hooks; used to verify what `read` gives."""
        return self.output(layer, type(layer).forward(layer, u))

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """Attributes (other than resized tensors) that a layer of this order carries; for checkpoints."""
        return {}
