"""A small run under each trainer, in one process or as one of several that torchrun started.

`torchrun --nproc-per-node 2 many.py TRAINER FOLDER` writes what each rank ended with to FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from compressm import save_checkpoint
from compressm.layers import ModelConfig, SequenceModel
from compressm.layers.norm import NormKind
from compressm.reduction.criteria import FixedOrder
from compressm.training import At, InTrainingCompressor

CUTS: dict[str, Any] = {"schedule": At((3, 7)), "criteria": (FixedOrder(8), FixedOrder(5))}
KILL = 6
"""The step after which the run that goes on is cut off: its captures for the second cut have begun."""

World = tuple[int, int]


def build(dropout: float) -> SequenceModel:
    torch.manual_seed(1)
    config = ModelConfig(inputs=2, outputs=3, width=4, order=12, blocks=2, dropout=dropout, norm=NormKind.LAYER)
    return SequenceModel(config).double()


def dataset() -> TensorDataset:
    x = torch.randn(36, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(1) / 3
    return TensorDataset(x, (x[:, -1, 0] > 0).long() + (x[:, -1, 1] > 1).long())


class Ended:
    """What a run ended with."""

    def __init__(self, model: nn.Module, average: nn.Module | None, compressor: InTrainingCompressor | None) -> None:
        assert compressor is not None
        self.model, self.average, self.compressor = model, average, compressor

    def tensors(self) -> dict[str, Tensor]:
        averaged = {} if self.average is None else self.average.state_dict()
        return {**self.model.state_dict(), **{f"average {k}": v for k, v in averaged.items()}}


def run_lightning(
    folder: Path, world: World, stop: int | None = None, resume: Path | None = None, **options: Any
) -> Ended:
    import lightning.pytorch as pl

    from compressm.training.integrations.lightning import CompressionCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build(options["dropout"])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.global_step == stop:
                raise RuntimeError("stopped")
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    callback = CompressionCallback(**CUTS, settings=options["settings"])
    averaging = pl.callbacks.EMAWeightAveraging(decay=0.8)
    saver = pl.callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu", devices=world[1], strategy="ddp" if world[1] > 1 else "auto", max_epochs=3, logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[callback, averaging, saver],
    )  # fmt: skip
    module = Module()
    share = DistributedSampler(dataset(), world[1], world[0], shuffle=False)
    loader = DataLoader(dataset(), batch_size=12 // world[1], sampler=share)
    try:
        trainer.fit(module, loader, ckpt_path=None if resume is None else resume / "last.ckpt")
    except RuntimeError:
        if stop is None:
            raise
    return Ended(module.net, None, callback.compressor)


def run_huggingface(
    folder: Path, world: World, stop: int | None = None, resume: Path | None = None, **options: Any
) -> Ended:
    import transformers

    from compressm.training.integrations.huggingface import CompressionCallback

    class Pretrained(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self) -> None:
            super().__init__(transformers.PretrainedConfig())
            self.net = build(options["dropout"])

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.net(x)
            return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}

    class Items(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 36

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            x, y = dataset()[index]
            return {"x": x, "labels": y}

    class Stop(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                raise RuntimeError("stopped")

    arguments = transformers.TrainingArguments(
        str(folder), max_steps=9, per_device_train_batch_size=12 // world[1], learning_rate=1e-2, report_to="none",
        use_cpu=True, save_steps=1, save_total_limit=2, disable_tqdm=True, seed=3, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(Pretrained(), arguments, train_dataset=Items(), callbacks=[Stop()])
    callback = CompressionCallback(trainer, **CUTS, settings=options["settings"])
    trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume / f"checkpoint-{KILL}"))
    except RuntimeError:
        if stop is None:
            raise
    return Ended(trainer.model.net, None, callback.compressor)


def run_accelerate(
    folder: Path, world: World, stop: int | None = None, resume: Path | None = None, **options: Any
) -> Ended:
    from accelerate import Accelerator

    from compressm.training.integrations.accelerate import AcceleratedCompressor

    accelerator = Accelerator(cpu=True)
    model = build(options["dropout"])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(dataset(), batch_size=12 // world[1])
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(average)
    compressor = AcceleratedCompressor(
        accelerator, wrapped, optimizer, mirrors=[average], **CUTS, settings=options["settings"]
    )
    torch.manual_seed(10 + world[0])
    if resume is not None:
        accelerator.load_state(str(resume / "state"))
    while compressor.compressor.steps < (stop or 9):  # epochs of three steps
        for x, y in loader:
            accelerator.backward(nn.functional.cross_entropy(wrapped(x), y))
            optimizer.step()
            optimizer.zero_grad()
            compressor.step()
            average.update_parameters(model)
    if stop is not None:
        accelerator.save_state(str(folder / "state"))
    return Ended(model, average, compressor.compressor)


TRAINERS: dict[str, Callable[..., Ended]] = {
    "lightning": run_lightning,
    "huggingface": run_huggingface,
    "accelerate": run_accelerate,
}


def main(trainer: str, folder: Path) -> None:
    """Train through the cuts; then the same with dropout and captures, whole, and stopped and gone on with."""
    torch.set_num_threads(1)
    world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run, rank = TRAINERS[trainer], world[0]
    parity = run(folder / "parity", world, dropout=0.0, settings="white")
    save_checkpoint(folder / f"parity-{rank}", parity.model)
    captured: dict[str, Any] = {"dropout": 0.2, "settings": "default"}
    whole = run(folder / "whole", world, **captured)
    run(folder / "killed", world, stop=KILL, **captured)
    torch.distributed.barrier()  # rank 0 writes
    torch.manual_seed(99)
    again = run(folder / "again", world, resume=folder / "killed", **captured)
    one, other = whole.tensors(), again.tensors()
    unequal = [name for name in one | other if name not in other or not torch.equal(one[name], other[name])]
    extra = {"unequal": unequal, "steps": [event.step for event in again.compressor.history]}
    save_checkpoint(folder / f"again-{rank}", again.model, extra=extra)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
