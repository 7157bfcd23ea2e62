"""What processes that train one model do in the same way, whether each has all of it or a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from compressm.adapters.calibration import Calibration
from compressm.adapters.mirroring import copy_inside
from compressm.adapters.registry import Adapters
from compressm.errors import DistributedError
from compressm.reduction.report import CompressionReport
from compressm.settings import CompressionSettings
from compressm.training.distributed.channel import Channel
from compressm.training.distributed.following import describe_layers, follow
from compressm.training.distributed.pooling import pool_captures
from compressm.training.distributed.structure import describe, require_equal
from compressm.training.processes import Processes


class Joined(Processes):
    """Processes joined by a channel: rank 0 decides and cuts, the others receive what it has made."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self._channel = Channel(ranks)

    @property
    def rank(self) -> int:
        return self._channel.rank

    @property
    def size(self) -> int:
        return self._channel.size

    def gather(self, value: Any) -> list[Any]:
        return self._channel.gather(value)

    def agreed(self, value: float) -> float:
        found = self._channel.broadcast(value)
        return float(found)

    def check(self, what: Mapping[str, object], optimizers: Sequence[Optimizer]) -> None:
        plain = {name: repr(value) for name, value in what.items()}
        require_equal(self._channel, {**plain, **describe(self.model, optimizers)})

    def cut(
        self,
        decide: Callable[[], CompressionReport],
        settings: CompressionSettings,
        optimizers: Sequence[Optimizer],
        calibration: Calibration,
        adapters: Adapters | None,
        mirrors: Sequence[nn.Module],
    ) -> CompressionReport:
        copies = [copy_inside(mirror) for mirror in mirrors]
        with self.whole(optimizers):
            pool_captures(self._channel, self.model, settings, calibration, adapters)
            report, described, mirrored = broadcast_cut(self._channel, decide, self.model, optimizers, adapters, copies)

            def follow_all() -> None:
                if self.rank != 0:
                    follow(self.model, described, optimizers, adapters)
                    for copy, layers in zip(copies, mirrored, strict=True):
                        follow(copy, layers, (), adapters)

            self._everywhere("follow the cut of rank 0", follow_all)
            if report.changed:
                self.check({"the cut": report.orders()}, optimizers)
        if report.changed:
            self.resized()
        return report

    def _everywhere(self, what: str, call: Callable[[], None]) -> None:
        """Do `call`, which must not talk to the other processes; DistributedError on all of them where one fails."""
        failure: Exception | None = None
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised below, on every process
            failure = error
        told = self._channel.gather("" if failure is None else f"{type(failure).__name__}: {failure}")
        for rank, text in enumerate(told):
            if text:
                raise DistributedError(
                    f"Process {rank} could not {what} ({text}). The processes' models differ now: start all of them "
                    f"again from the last checkpoint."
                ) from failure

    def close(self) -> None:
        self._channel.close()


def broadcast_cut(
    channel: Channel,
    decide: Callable[[], CompressionReport],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    adapters: Adapters | None,
    copies: Sequence[nn.Module],
) -> tuple[CompressionReport, dict[str, Any], list[dict[str, Any]]]:
    """Call `decide` on rank 0; everywhere its report, and what became of the layers that it cut, in each copy too.

    Raises what `decide` raised, on every process: the same kind of CompressmError, DistributedError for another one.
    """
    made: list[CompressionReport] = []

    def cut() -> dict[str, Any]:
        made.append(decide())
        changed = [layer.name for layer in made[0].layers if layer.changed]
        return {
            "report": made[0].to_dict(),
            "layers": describe_layers(model, changed, optimizers, adapters),
            "copies": [describe_layers(copy, changed, (), adapters) for copy in copies],
        }

    message = channel.from_first(cut)
    report = made[0] if made else CompressionReport.from_dict(message["report"])
    return report, message["layers"], message["copies"]
