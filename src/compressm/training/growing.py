"""A batch that grows as cuts make a step smaller: as many cases as fit into the memory of the first steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressm.checks import require_integer, require_kind
from compressm.errors import ConfigError


class RateRule(Enum):
    """What becomes of the learning rate where the batch is k times as large as at the start."""

    NONE = "none"  # it stays
    LINEAR = "linear"  # times k
    SQRT = "sqrt"  # times the square root of k


class GrowingBatch:
    """The batch size that the memory of a training step allows, measured after each cut.

    With s the bytes that autograd keeps for the backward pass of a batch of B cases, and h those of parameters, their
    gradients and optimizer state, a step takes h + s (and a working memory that autograd does not tell). The budget is
    h_0 + s_0 of the uncut model with the first size. After a cut one step is measured, and the size becomes

        B' = floor(B (h_0 + s_0 - h) / s), at least the first size, at most `maximum`.

    Since s grows at most in proportion to B, h + s stays within the budget; the working memory may not. A size belongs
    to a number of parameters: a cut that is taken back takes its size along. In a plain loop::

        growing = GrowingBatch(model, optimizer, size=32, maximum=256, rate=RateRule.SQRT)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * growing.rate_factor
            x, y = draw(growing.size)
            with growing.measured():  # around the forward pass
                loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            compressor.step()

    On several processes give `agreed=compressor.processes.agreed`: all take the number of rank 0, and all must read
    `size` and enter `measured` in the same steps. `state_dict` belongs into the checkpoint.

    Raises ConfigError unless `maximum` is at least `size`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        size: int,
        maximum: int,
        rate: RateRule = RateRule.NONE,
        agreed: Callable[[float], float] = float,
    ) -> None:
        require_integer("size", size, 1)
        require_integer("maximum", maximum, 1)
        require_kind("rate", rate, RateRule)
        if maximum < size:
            raise ConfigError(f"maximum is {maximum}; wanted at least the first size, {size}.")
        self._model = model
        self._optimizers = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
        self._first, self._maximum, self._rate, self._agreed = size, maximum, rate, agreed
        self._steps = 0
        self._budget: int | None = None
        self._sizes: dict[int, int] = {}

    @property
    def size(self) -> int:
        """The number of cases of the next batch."""
        numbers = self._numbers()
        larger = [size for known, size in self._sizes.items() if known >= numbers]  # what fitted a larger model fits
        return min(max(larger, default=self._first), self._maximum)

    @property
    def rate_factor(self) -> float:
        """The factor on the learning rate for a batch of the present size."""
        growth = self.size / self._first
        return {RateRule.NONE: 1.0, RateRule.LINEAR: growth, RateRule.SQRT: growth**0.5}[self._rate]

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around the forward pass of a training step, its loss included; looks on only in the steps that need it.

        That is the second step (in the first the optimizer has no state yet), and the one after each cut.
        """
        self._steps += 1
        numbers = self._numbers()
        if self._steps == 1 or numbers in self._sizes:
            yield
            return
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, _same):
            yield
        held, saved = (
            self._held(),
            kept.bytes({p.data_ptr() for p in self._model.parameters() if type(p) is nn.Parameter}),
        )
        if self._budget is None:
            self._budget = held + saved
        fits = self.size * (self._budget - held) // max(saved, 1)
        size = int(self._agreed(max(self._first, min(fits, self._maximum))))
        self._sizes[numbers] = size

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as plain numbers for JSON."""
        return {
            "first": self._first,
            "steps": self._steps,
            "budget": self._budget,
            "sizes": [[numbers, size] for numbers, size in self._sizes.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises ConfigError, with nothing changed, where it is damaged or of another first size.
        """
        require_kind("The state of the growing batch", state, Mapping)
        first, steps, budget, sizes = (state.get(name) for name in ("first", "steps", "budget", "sizes"))
        require_integer("The growing batch's number of steps", steps, 0)
        if budget is not None:
            require_integer("The growing batch's budget", budget, 1)
        require_kind("The growing batch's sizes", sizes, list)
        for pair in sizes or ():
            require_kind("A size of the growing batch", pair, list, tuple)
            if len(pair) != 2:
                raise ConfigError(f"A size of the growing batch is {pair!r}; wanted a number of parameters and a size.")
            for number in pair:
                require_integer("A size of the growing batch", number, 1)
        if first != self._first:
            raise ConfigError(f"The saved batch began with {first} cases, this one with {self._first}; give the same.")
        self._steps, self._budget = int(state["steps"]), budget
        self._sizes = dict(state["sizes"])

    def _numbers(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    def _held(self) -> int:
        """Bytes of parameters, a gradient beside each that is trained, and optimizer state."""
        parameters = list(self._model.parameters())
        state = [entry for optimizer in self._optimizers for entry in optimizer.state.values()]
        tensors = [v for entry in state if isinstance(entry, dict) for v in entry.values() if isinstance(v, Tensor)]
        return sum(t.nbytes for t in [*parameters, *(p for p in parameters if p.requires_grad), *tensors])


class _Kept:
    """The memory that autograd keeps, each storage once, held so that no address is used twice meanwhile."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        if type(tensor) in (Tensor, nn.Parameter):  # others, such as those of shards, wrap what holds their memory
            storage = tensor.untyped_storage()
            self._storages.setdefault(storage.data_ptr(), storage)
        return tensor

    def bytes(self, own: set[int]) -> int:
        """Of all storages but those at the addresses `own`."""
        return sum(storage.nbytes() for place, storage in self._storages.items() if place not in own)


def _same(tensor: Tensor) -> Tensor:
    return tensor
