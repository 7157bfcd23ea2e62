"""The contract between a layer of the user's and the method: read a system, write a smaller one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum

from torch import Tensor, nn

from compressm.adapters.tapping import Tapped
from compressm.adapters.update import LayerUpdate
from compressm.errors import AdapterError
from compressm.linalg.statespace import StateSpace
from compressm.reduction.result import Reduction
from compressm.reduction.selection import SelectionRules


class Form(Enum):
    """Which reductions a layer's parameters can express."""

    DIAGONAL = "diagonal"  # any similarity, then complex diagonal states with a real output: Re(C x)
    DENSE = "dense"  # any real similarity, real matrices A, B, C
    SHARED = "shared"  # one real similarity for all systems of a bank, which share real matrices
    SELECTION = "selection"  # a choice of the present states only


class StateSpaceAdapter(ABC):
    """How one kind of layer is read as a linear system and how a reduced system is written back.

    A layer with one system for each of its H channels (S4D, DSS, LSSL) is read as a bank: a `StateSpace` with the batch
    shape `(H,)`, say a `(H, n)`, b `(H, n, 1)`, c `(H, 1, n)`. All channels have one order after a cut; the Reduction
    that `write` gets has the batch dimension in its system, maps and keep-sets, and a channel that needed fewer
    states has idle ones (c = 0). Inputs are `(batch, L, H m)` and outputs `(batch, L, H p)`, channel by channel (see
    `StateSpace`); a layer that has them otherwise arranges them in `inputs`, `arranged` and `response`. Where poles
    are stored once for all channels, no channel can have poles of its own: declare `Form.SELECTION` and
    `SelectionRules(shared=True)`. Where a dense state matrix is stored once, one change of states serves all channels:
    declare `Form.SHARED` and define `projected`.

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
        """The input `(batch, L, m)` (a bank's `(batch, L, H m)`) and mask `(batch, L)`, True for data, of a call."""
        mask = kwargs.get("mask", args[1] if len(args) > 1 else None)
        u = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(u, Tensor):
            raise TypeError(f"{type(layer).__name__} was called without an input tensor as its first argument.")
        return u, mask if isinstance(mask, Tensor) else None

    def takes_input(self, layer: nn.Module) -> bool:
        """Whether a call of the layer is given the system's input.

        Not so for a module that returns an impulse response with which others convolve: nothing is captured there, and
        Gramians are those of white input.
        """
        return True

    def output(self, layer: nn.Module, result: object) -> Tensor:
        """The output among what one forward call returned, as the layer has it: gradients are captured at it."""
        value = result[0] if isinstance(result, tuple) else result
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(layer).__name__} returned {type(value).__name__}; wanted a tensor or a tuple of one."
            )
        return value

    def tap(self, layer: nn.Module) -> nn.Module | None:
        """The submodule whose first input is the system's output, where the layer goes on with it (an activation, say).

        None where the layer returns the system's output. Otherwise gradients are captured at that input, and it takes
        the place of what `output` finds.
        """
        return None

    def arranged(self, layer: nn.Module, value: Tensor) -> Tensor:
        """What `output` gives, or a gradient at it, brought to `(batch, L, p)` or a bank's `(batch, L, H p)`."""
        return value

    def response(self, layer: nn.Module, u: Tensor) -> Tensor:
        """The layer's own output, arranged, for the input `u` `(batch, L, m)`; used to verify what `read` gives.

        Runs no hooks of the layer. A layer whose input has another arrangement overrides it.
        """
        tap = self.tap(layer)
        if tap is None:
            return self.arranged(layer, self.output(layer, type(layer).forward(layer, u)))
        with Tapped(tap, layer) as tapped:
            type(layer).forward(layer, u)
            return self.arranged(layer, tapped.take())

    def projected(self, layer: nn.Module, restrict: Tensor, embed: Tensor) -> StateSpace:
        """The bank of a layer with `Form.SHARED` in the states x' = restrict x, x ~ embed x', as it would then act.

        Raises AdapterError where the adapter of such a layer does not define it.
        """
        raise AdapterError(f"{type(self).__name__} has Form.SHARED but does not define projected().")

    def slots(self, layer: nn.Module, system: StateSpace) -> int:
        """How many states the layer stores now: the order of the system read, unless that is one of real states whose
        layer stores complex ones, each for two of them.
        """
        return system.order

    def selection(self, layer: nn.Module) -> SelectionRules:
        """What a choice of states of a layer with `Form.SELECTION` has to keep to."""
        return SelectionRules()

    def prepare(self, layer: nn.Module, order: int) -> Mapping[str, object]:
        """Attributes (other than resized tensors) that a layer of this order carries; for checkpoints."""
        return {}
