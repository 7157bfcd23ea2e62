"""Processes that train equal copies of a model under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from compressm.adapters.uncompiled import uncompiled
from compressm.surgery.wrappers import require_plain
from compressm.training.distributed.joined import Joined
from compressm.training.distributed.renewal import renew, require_renewable


@final
class Replicas(Joined):
    """The processes of a DistributedDataParallel, whose wrapper is renewed in place."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        require_plain(ddp.module)
        require_renewable(ddp)
        self._ddp = ddp
        super().__init__(dist.get_process_group_ranks(ddp.process_group))

    @property
    def model(self) -> nn.Module:
        return uncompiled(self._ddp.module)

    def whole(self, optimizers: Sequence[Optimizer]) -> AbstractContextManager[None]:
        return nullcontext()

    def resized(self) -> None:
        renew(self._ddp)
