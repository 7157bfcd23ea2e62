"""One process, or several that train one model: what a compressor and a loop ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from compressm.adapters.uncompiled import uncompiled
from compressm.errors import ConfigError
from compressm.surgery.wrappers import is_sharded, require_plain

if TYPE_CHECKING:
    from compressm.adapters.calibration import Calibration
    from compressm.adapters.registry import Adapters
    from compressm.reduction.report import CompressionReport
    from compressm.settings import CompressionSettings


class Processes(ABC):
    """The processes that train one model together. All methods but the properties are called by all of them at once."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number of this process, 0 for the one that decides and writes."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of processes."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The plain model of this process."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The nested plain values and tensors of all processes, by rank."""

    @abstractmethod
    def agreed(self, value: float) -> float:
        """The value that rank 0 has."""

    @abstractmethod
    def check(self, what: Mapping[str, object], optimizers: Sequence[Optimizer]) -> None:
        """Raise DistributedError unless models, optimizers and `what` (plain values) are the same everywhere."""

    @abstractmethod
    def whole(self, optimizers: Sequence[Optimizer]) -> AbstractContextManager[None]:
        """Inside, parameters and the state of these optimizers are whole, as on a single process."""

    @abstractmethod
    def cut(
        self,
        decide: Callable[[], CompressionReport],
        settings: CompressionSettings,
        optimizers: Sequence[Optimizer],
        calibration: Calibration,
        adapters: Adapters | None,
        mirrors: Sequence[nn.Module],
    ) -> CompressionReport:
        """Call `decide`, which cuts the model and its `mirrors`, on rank 0, and make those of all others follow."""

    @abstractmethod
    def resized(self) -> None:
        """The parameters' sizes have changed on every process (a cut, a roll-back, a checkpoint): renew the wrapper."""

    @abstractmethod
    def close(self) -> None:
        """Nothing will be asked any more."""


class Alone(Processes):
    """A single process, which does everything itself."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    @property
    def model(self) -> nn.Module:
        return self._model

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def agreed(self, value: float) -> float:
        return value

    def check(self, what: Mapping[str, object], optimizers: Sequence[Optimizer]) -> None:
        return

    def whole(self, optimizers: Sequence[Optimizer]) -> AbstractContextManager[None]:
        return nullcontext()

    def cut(
        self,
        decide: Callable[[], CompressionReport],
        settings: CompressionSettings,
        optimizers: Sequence[Optimizer],
        calibration: Calibration,
        adapters: Adapters | None,
        mirrors: Sequence[nn.Module],
    ) -> CompressionReport:
        return decide()

    def resized(self) -> None:
        return

    def close(self) -> None:
        return


def processes_of(model: nn.Module) -> Processes:
    """The processes that train `model`, compiled or not: of a DistributedDataParallel or `fully_shard`, else this one.

    Raises SurgeryError, with the remedy, where the model is wrapped in anything else, and ConfigError where a plain
    model is given although torch.distributed runs several processes: each would cut it in another way.
    """
    model = uncompiled(model)
    if isinstance(model, DistributedDataParallel):
        from compressm.training.distributed.replicas import Replicas

        return Replicas(model)
    if isinstance(model, nn.Module) and is_sharded(model):
        from compressm.training.distributed.shards import Shards

        return Shards(model)
    require_plain(model)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise ConfigError(
            f"torch.distributed runs {distributed.get_world_size()} processes, but the model given is not wrapped: "
            f"each process would cut it in another way. Give the DistributedDataParallel object itself, not its "
            f"`module`, or a model under fully_shard."
        )
    return Alone(model)
