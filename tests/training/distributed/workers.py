"""What the processes of the tests do; `JOB` is set by whoever runs this file."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from compressm.checkpoint import load_checkpoint, save_checkpoint
from compressm.errors import CompressmError, SurgeryError
from compressm.layers import ModelConfig, SequenceModel
from compressm.layers.norm import NormKind
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, Guard, InTrainingCompressor, OnError
from compressm.training.distributed.channel import Channel, pack
from compressm.training.distributed.rank_states import RankStates
from compressm.training.presets import preset

BATCH = 12


class Training:
    """A small run, the same on every rank but for its share of each batch."""

    def __init__(
        self,
        rank: int,
        size: int,
        cuts: list[int],
        orders: list[int],
        dtype: str = "float32",
        dropout: float = 0.0,
        norm: str = "layer",
        start: int = 12,
        lr: float = 3e-3,
        ddp: dict[str, Any] | None = None,
        probe: int | None = None,
        shard: list[str] | None = None,
        refit: bool = False,
        compiled: str | None = None,
        **options: Any,
    ) -> None:
        if probe is not None:
            options["guard"] = Guard(lambda: 0.0, 1.0, higher_is_better=False, probe_after=probe)
        if refit:
            options["settings"] = preset("default").refitted().settings
        torch.manual_seed(0)
        self.rank, self.size, self.done, self.dtype = rank, size, 0, getattr(torch, dtype)
        self.rows = torch.arange(BATCH)[rank::size]
        config = ModelConfig(inputs=2, outputs=3, width=4, order=start, blocks=2, dropout=dropout, norm=NormKind(norm))
        self.model = SequenceModel(config).to(self.dtype)
        self.wrapped = self.model
        if size > 1 and shard is not None:
            for name in shard:  # modules inside first, as fully_shard asks for
                fully_shard(self.model.get_submodule(name))
        elif size > 1:
            inside = torch.compile(self.model, backend="aot_eager") if compiled == "inside" else self.model
            self.wrapped = DistributedDataParallel(inside, **(ddp or {}))
        if compiled == "outside":
            self.wrapped = torch.compile(self.wrapped, backend="aot_eager")
        torch.manual_seed(100 + rank)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 300)
        self.compressor = InTrainingCompressor(
            self.wrapped,
            self.optimizer,
            schedule=At(tuple(cuts)),
            criteria=[FixedOrder(order) for order in orders],
            scheduler=self.scheduler,
            **options,
        )
        self.losses: list[float] = []

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(BATCH, 20, 2, generator=g).cumsum(1) / 3
        y = (x[:, -1, 0] > 0).long() + (x[:, -1, 1] > 1).long()
        return x[self.rows].to(self.dtype), y[self.rows]

    def train(self, last: int) -> None:
        while self.done < last:
            x, y = self.batch(self.done)
            loss = nn.functional.cross_entropy(self.wrapped(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.done += 1
            self.compressor.step()
            self.losses.append(loss.item())

    def save(self, path: str) -> None:
        states = RankStates.collect(self.compressor)
        with self.compressor.whole():
            if self.rank == 0:
                save_checkpoint(
                    path,
                    self.model,
                    optimizer=self.optimizer,
                    scheduler=self.scheduler,
                    compressor=states,
                    extra={"done": self.done},
                    rng=False,
                )
        if self.size > 1:
            dist.barrier()

    def load(self, path: str) -> None:
        states = RankStates(self.compressor)
        with self.compressor.whole():
            extra = load_checkpoint(
                path, self.model, optimizer=self.optimizer, scheduler=self.scheduler, compressor=states, rng=False
            )
        self.done = extra["done"]

    def result(self) -> dict[str, Any]:
        with self.compressor.whole():
            return self._result()

    def _result(self) -> dict[str, Any]:
        names = {p: n for n, p in self.model.named_parameters()}
        moments = {f"{names[p]}/{k}": v for p, entry in self.optimizer.state.items() for k, v in entry.items()}
        x = torch.randn(32, 20, 2, generator=torch.Generator().manual_seed(7)).to(self.dtype)
        self.model.eval()
        return {
            "losses": self.losses,
            "output": self.model(x).detach(),
            "model": dict(self.model.state_dict()),
            "optimizer": moments,
            "events": [str(event) for event in self.compressor.history],
            "values": [
                list(layer.hankel_singular_values)
                for cut in self.compressor.history.cuts
                for layer in cut.report.layers
            ],
            "fits": [
                [layer.fit_before, layer.fit_after]
                for cut in self.compressor.history.cuts
                for layer in cut.report.layers
            ],
            "orders": self.compressor.orders(),
            "steps": self.compressor.steps,
        }


def run(
    rank: int, size: int, steps: int, order_of_rows: list[int] | None = None, every: int = 1, **options: Any
) -> dict[str, Any]:
    """A run with cuts; on one process, optionally with other rows of each batch: in this order, or only some."""
    training = Training(rank, size, **options)
    if order_of_rows is not None:
        training.rows = torch.tensor(order_of_rows)
    training.rows = training.rows[::every]
    training.train(steps)
    training.compressor.close()
    return training.result()


def with_hooks(rank: int, size: int, steps: int, ddp: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A run whose wrapper carries a communication hook, a hook of its own and an attribute of somebody else's."""
    training = Training(rank, size, ddp=ddp, **options)
    wrapped, seen = training.wrapped, {"forward": 0, "buckets": 0}

    def average(state, bucket):  # PyTorch refuses annotations that are text
        state["buckets"] += 1
        return default_hooks.allreduce_hook(None, bucket)

    def count(*_: object) -> None:
        seen["forward"] += 1

    wrapped.register_comm_hook(seen, average)
    wrapped.register_forward_hook(count)
    wrapped.somebodys = "own"
    before, buckets = id(wrapped), []
    for last in range(1, steps + 1):
        training.train(last)
        buckets.append(seen["buckets"])
    kept = {"same": id(wrapped) == before, "attribute": wrapped.somebodys, "training": wrapped.training}
    options_after = {name: getattr(wrapped, name) for name in ("find_unused_parameters", "gradient_as_bucket_view")}
    return {
        **training.result(),
        **kept,
        **options_after,
        "seen": seen,
        "buckets": buckets,
        "static": wrapped.static_graph,
    }


def guarded(rank: int, size: int, worse_on: int, **options: Any) -> dict[str, Any]:
    """A guard whose metric gets worse on one rank only; at the end all have trained 4 more steps."""
    calls: list[int] = []
    training: list[Training] = []

    def metric() -> float:
        calls.append(len(calls))
        return float(len(calls)) if rank == worse_on else 0.0

    guard = Guard(metric, 0.5, higher_is_better=False, probe_after=3)
    training.append(Training(rank, size, guard=guard, **options))
    training[0].train(12)
    return {**training[0].result(), "calls": len(calls)}


def disagree(rank: int, size: int, how: str) -> dict[str, Any]:
    """Ranks that differ in one respect; the error that this rank is told."""
    cuts, orders = [3], [6]
    odd = rank == size - 1
    try:
        if how == "schedule":
            Training(rank, size, [4] if odd else cuts, orders)
        elif how == "buffer":
            with _patched(SequenceModel, "__init__", _with_buffer(odd)):
                Training(rank, size, cuts, orders)
        elif how == "optimizer":
            training = Training(rank, size, cuts, orders)
            training.train(2)
            if odd:
                first = next(training.model.parameters())
                training.optimizer.register_step_post_hook(lambda *_: training.optimizer.state.pop(first))
            training.train(3)
        elif how == "mirrors":  # an average on one rank alone
            training = Training(rank, size, cuts, orders)
            mirrors = [AveragedModel(training.model)] if odd else []
            InTrainingCompressor(training.wrapped, training.optimizer, schedule=At((3,)), mirrors=mirrors)
        elif how == "on_error":
            Training(rank, size, cuts, orders, on_error=OnError.RAISE if odd else OnError.SKIP)
        elif how in ("after", "following"):
            training = Training(rank, size, cuts, orders)
            training.train(2)
            if odd:  # follows, but not in all; cannot follow
                from compressm.training.distributed import joined

                joined.follow = _cannot if how == "following" else lambda model, described, *rest: None
            training.train(3)
        else:
            raise AssertionError(how)
    except CompressmError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "none", "text": ""}


def _cannot(*arguments: object) -> None:
    raise SurgeryError("no room")


def failing(rank: int, size: int, policy: str, **options: Any) -> dict[str, Any]:
    """A layer that cannot be analysed at the first of two cuts; on rank 0 an unknown error at the second."""
    training = Training(rank, size, [3, 6], [8, 6], on_error=OnError(policy), **options)
    training.train(2)
    layer = training.model.blocks[0].ssm
    kept: list[Tensor] = []
    stepping = training.optimizer.step

    def spoil() -> None:
        stepping()
        with torch.no_grad():
            kept.append(layer.nu_log.detach().clone())
            layer.nu_log.fill_(float("nan"))

    try:
        training.optimizer.step = spoil
        training.train(3)
        training.optimizer.step = stepping
        with torch.no_grad():
            layer.nu_log.copy_(kept[0])
        training.train(5)
        if rank == 0:
            training.compressor.history.budgets = _broken
        training.train(6)
    except (CompressmError, ZeroDivisionError) as error:
        return {**training.result(), "error": type(error).__name__, "text": str(error)}
    return {**training.result(), "error": "none", "text": ""}


def resumed(rank: int, size: int, path: str, at: int, steps: int, **options: Any) -> dict[str, Any]:
    """From the checkpoint at `path`, where `at` is 0; else up to `at`, where one is written, and on."""
    training = Training(rank, size, **options)
    if at:
        training.train(at)
        training.save(path)
    else:
        training.load(path)
    training.train(steps)
    return training.result()


def killed(rank: int, size: int, path: str, victim: int, where: str, count: int, steps: int, **options: Any) -> None:
    """A run that saves after every second step, and in which one rank is killed at the `count`-th call of `where`."""
    training = Training(rank, size, **options)
    if rank == victim:
        _kill_at(where, count)
    while training.done < steps:
        training.train(training.done + 1)
        if training.done % 2 == 0:
            training.save(path)


def pooled(rank: int, size: int) -> dict[str, Any]:
    """A nested value from every rank to every rank, and from rank 0 to all."""
    channel = Channel(list(range(size)))
    own = {"rank": rank, "list": [1.5, None, "x"], "tuple": (rank, float("inf")), "half": torch.ones(2, 0, 3).half()}
    own["big"] = torch.full((10 * (rank + 1), 10), 1 + 2j)
    own["number"] = torch.tensor(3, dtype=torch.bfloat16)
    everywhere = channel.gather(own)
    first = channel.broadcast(own if rank == 0 else None)
    total = channel.sum(torch.tensor([1.0, float(rank)]))
    return {"everywhere": everywhere, "first": first, "total": total}


def plain(rank: int, size: int) -> dict[str, Any]:
    """A plain model in a run of several processes."""
    model = SequenceModel(ModelConfig(inputs=2, outputs=3, width=4, order=8, blocks=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        InTrainingCompressor(model, optimizer, schedule=At((2,)))
    except CompressmError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "none", "text": ""}


def _broken() -> None:
    raise ZeroDivisionError("a bug")


def _with_buffer(odd: bool) -> Any:
    original = SequenceModel.__init__

    def build(self: SequenceModel, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.register_buffer("extra", torch.zeros(3).long() if odd else torch.zeros(3))
        self._ddp_params_and_buffers_to_ignore = ["extra"]

    return build


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _kill_at(where: str, count: int) -> None:
    """Kill this process when the function `module:name` or `module:Class.name` is called for the `count`-th time."""
    import importlib

    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, leaf = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, leaf), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, leaf, call)


def main(job: dict[str, Any], functions: dict[str, Any]) -> None:
    """Run one of these functions as one rank and write down what it returns, or its error."""
    folder, rank, size = Path(job["folder"]), job["rank"], job["size"]
    torch.set_num_threads(1)
    random.seed(rank)
    np.random.seed(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=600)
    )
    try:
        result = functions[job["function"]](rank, size, **job["arguments"])
    except (CompressmError, RuntimeError) as error:  # a RuntimeError of gloo: another rank is gone
        result = {"error": type(error).__name__, "text": str(error)}
    (folder / f"result-{rank}").write_bytes(pack(result).numpy().tobytes())


if "JOB" in globals():
    main(globals()["JOB"], globals())
